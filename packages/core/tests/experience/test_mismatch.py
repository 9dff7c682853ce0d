"""An engine whose log-probs are off: warn warns, stop stops, and correct changes the update exactly as worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.batch.stages import Sampled
from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.distributed.world import World
from lightrft.engine.hf import HFEngine
from lightrft.errors import ConfigError, MismatchError
from lightrft.experience.gap import add_gap, corrections
from lightrft.observe.metrics import StepMetrics
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.batches import batch_of, rows_of
from lightrft.testing.fake_engine import VOCAB_SIZE
from lightrft.testing.fake_strategy import FakeStrategy, fake_registry
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.trainer import SPMDPPOTrainer
from lightrft.types import Completion, Request, RequestOutput, Sample, SamplingParams

ALPHABET = "0123456789 =+"
SHIFTS = (0.3, -1.0, 0.05)
"""What the engine adds to the log-probs of a completion's first, second, third token, and again from the fourth on."""


class OffEngine(HFEngine):
    """Samples rightly, and reports log-probs that are off by `SHIFTS`."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        return [replace(o, completions=tuple(map(self._off, o.completions))) for o in super().generate(requests, sampling)]

    def _off(self, completion: Completion) -> Completion:
        if completion.logprobs is None:
            return completion
        return replace(completion, logprobs=[value + shift(i) for i, value in enumerate(completion.logprobs)])


OFF = EngineSpec(name="off", target=f"{__name__}:OffEngine", capabilities=frozenset({Capability.LOGPROBS, Capability.SEED}))


def shift(index: int) -> float:
    return SHIFTS[index % len(SHIFTS)]


def every_other(samples: Sequence[Sample]) -> list[float]:
    return [float(index % 2) for index, _ in enumerate(samples)]


def make_trainer(folder: Path, **changes: Any) -> SPMDPPOTrainer:
    """One rollout of 2 prompts x 2 completions is one optimizer step of two micro-batches."""
    values: dict[str, Any] = dict(
        strategy="fake", engine_type="off", output_dir=str(folder / "run"), verify_sync_every=0,
        prompt_max_len=16, generate_max_len=5, rollout_batch_size=2,
        n_samples_per_prompt=2, train_batch_size=4, micro_train_batch_size=3, max_norm=0.0, plot_every=0, loggers=["jsonl"], max_steps=1,
    )  # fmt: skip
    config = make_config(values | changes)
    strategy = get_strategy(config, registry=fake_registry(OFF))
    model_folder = tiny_model_folder(folder / "base", alphabet=ALPHABET, vocab_size=VOCAB_SIZE, seed=2)
    strategy.setup_inference_engine(config, engine_type=config.engine_type, model_path=str(model_folder))
    actor, optimizer = strategy.prepare_trainable(
        tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE), optimizer=AdamWSettings(learning_rate=1e-3)
    )
    initial = strategy.prepare_model(tiny_causal_lm(seed=3, vocab_size=VOCAB_SIZE)) if config.kl_coef else None
    tokenizer = tiny_tokenizer(ALPHABET)
    texts = ["1 + 1 =", "2 + 3 ="]
    return SPMDPPOTrainer(
        strategy=strategy,
        actor=actor,
        initial_model=initial,
        reward_model=every_other,
        actor_optim=optimizer,
        tokenizer=tokenizer,
        prompts=[Prompt(index=i, text=t, token_ids=tuple(tokenizer(t)["input_ids"]), answer="", row={}) for i, t in enumerate(texts)],
        eval_prompts=[],
    )


def by_token(length: int) -> list[float]:
    return [min(math.exp(-shift(i)), 2.0) for i in range(length)]


def by_sequence(length: int) -> list[float]:
    return [min(math.exp(-sum(shift(i) for i in range(length))), 2.0)] * length


def unweighted(length: int) -> list[float]:
    return [1.0] * length


def gradient_by_hand(trainer: SPMDPPOTrainer, weights: Callable[[int], list[float]], kl_coef: float) -> dict[str, torch.Tensor]:
    """Of the token mean of -w A rho + kl_coef k2; rho is 1 at the first step and its gradient that of log pi."""
    model = tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE)
    terms = []
    for row in rows_of(trainer.experience):
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        logits = model(input_ids=ids).logits[0] / trainer.config.temperature
        logprobs = logits.log_softmax(-1)[torch.arange(len(row.prompt_ids) - 1, ids.shape[1] - 1), ids[0, len(row.prompt_ids) :]]
        terms += list(-torch.tensor(weights(len(row.completion_ids))) * row.advantages * logprobs)
        if kl_coef:
            terms += list(kl_coef * (row.reference_logprobs - logprobs) ** 2 / 2)
    (sum(terms[1:], terms[0]) / int(trainer.experience.loss_mask.sum())).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gradient_of_the_update(trainer: SPMDPPOTrainer) -> dict[str, torch.Tensor]:
    """What the strategy's step sees: taken just before it."""
    seen: dict[str, torch.Tensor] = {}
    strategy: Any = trainer.strategy
    step = strategy._step

    def spying_step(*arguments: Any) -> Any:
        seen.update({name: p.grad.clone() for name, p in trainer.actor.named_parameters() if p.grad is not None})
        return step(*arguments)

    strategy._step = spying_step
    trainer.ppo_train(1)
    return seen


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({"logprob_gap_action": "correct"}, by_token),
        ({"logprob_gap_action": "correct", "mismatch_level": "sequence"}, by_sequence),
        ({"logprob_gap_action": "correct", "temperature": 0.7}, by_token),
        ({"logprob_gap_action": "correct", "kl_coef": 0.3, "kl_estimator": "k2"}, by_token),
        ({"logprob_gap_action": "warn"}, unweighted),
    ],
)
def test_the_update_is_weighted_as_by_hand(tmp_path: Path, changes: dict[str, Any], weights: Callable[[int], list[float]]) -> None:
    trainer = make_trainer(tmp_path, **changes)
    trainer.strategy.update_engine_weights(trainer.actor)
    metrics = trainer.make_experience()
    lengths = trainer.experience.num_sampled.tolist()
    assert max(lengths) > 2 and bool(trainer.experience.advantages.any())
    if changes["logprob_gap_action"] == "correct":
        for values in trainer.experience.by_sequence(trainer.experience.corrections):
            assert values.tolist() == pytest.approx(weights(len(values)), rel=1e-5)
        beyond = sum(math.exp(-sum(map(shift, range(n)))) > 2 for n in lengths for _ in range(n))
        if weights is by_token:
            beyond = sum((n + 1) // 3 for n in lengths)  # the second of each three tokens has e^1 > 2
        assert metrics["rollout/mismatch_clipped"] == pytest.approx(beyond / sum(lengths))
    expected = gradient_by_hand(trainer, weights, trainer.config.kl_coef)
    got = gradient_of_the_update(trainer)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert (got[name] - value).abs().max() <= 1e-5 * max(float(value.abs().max()), 1e-3), name


def test_a_correction_asks_for_every_prompt_and_a_warning_for_some(tmp_path: Path) -> None:
    for action, expected in (("correct", [True] * 4), ("warn", [True, True, False, False])):
        changes: dict[str, Any] = {"logprob_gap_prompts": 1} if action == "warn" else {}
        trainer = make_trainer(tmp_path / action, logprob_gap_action=action, **changes)
        trainer.strategy.update_engine_weights(trainer.actor)
        trainer.make_experience()
        assert trainer.experience.has_logprobs.tolist() == expected


def test_warn_warns_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = make_trainer(tmp_path, logprob_gap_action="warn").fit()
    out = capsys.readouterr().out
    assert out.count("WARNING: engine and trainer disagree") == 1 and "corrected" not in out
    assert summary["steps"] == 1 and summary["last"]["rollout/logprob_gap"] > 0.2


def test_correct_says_so_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = make_trainer(tmp_path, logprob_gap_action="correct").fit()
    assert capsys.readouterr().out.count("corrected by truncated importance sampling") == 1
    assert summary["steps"] == 1


def test_stop_stops_before_the_update(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, logprob_gap_action="stop")
    before = [p.detach().clone() for p in trainer.actor.parameters()]
    with pytest.raises(MismatchError, match="mean log-prob gap 0"):
        trainer.fit()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.actor.parameters(), strict=True))


def test_an_honest_engine_is_corrected_by_ones(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, engine_type="hf", logprob_gap_action="correct", mismatch_level="sequence")
    trainer.strategy.update_engine_weights(trainer.actor)
    metrics = trainer.make_experience()
    for values in trainer.experience.by_sequence(trainer.experience.corrections):
        assert values.tolist() == pytest.approx([1.0] * len(values), abs=1e-4)
    assert metrics["rollout/mismatch_ess"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["rollout/mismatch_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["rollout/mismatch_clipped"] == 0.0


def test_no_correction_without_log_probs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="logprob_gap_action='correct' needs the capability 'logprobs', which engine 'fake'"):
        make_trainer(tmp_path, engine_type="fake", logprob_gap_action="correct")
    with pytest.raises(MismatchError, match="every completion, found one without"):
        corrections(batch_of(Sampled, [([3], [3])]), torch.zeros(2), level="token", cap=2.0)


# ---- several ranks -----------------------------------------------------------------------------------------------------------------------


class RanksStrategy(FakeStrategy):
    """The fake, on the ranks of `run_spmd`."""

    def _join_world(self) -> World:
        return World.join(need_group=True)


def gap_of_a_rank() -> dict[str, float]:
    """Rank 0 knows two tokens, rank 1 none, rank 2 one."""
    registry = fake_registry()
    strategy = RanksStrategy(make_config({"strategy": "fake"}), spec=registry.spec("strategy", "fake"), registry=registry)
    tokens, engine, mine = [
        ([5, 6], [-1.0, -2.0], [-2.0, -2.0]),
        ([5, 6], None, [-9.0, -9.0]),
        ([7], [-0.5], [0.5]),
    ][strategy.world.rank]
    batch, metrics = batch_of(Sampled, [([3], tokens)], engine_logprobs=[engine]), StepMetrics()
    add_gap(metrics, batch, batch.on_tokens(torch.tensor(mine)))
    return metrics.reduce(strategy.world.group)


def test_the_gap_of_three_ranks_is_that_of_all_their_known_tokens() -> None:
    weights = [math.exp(-1), 1.0, math.exp(1)]
    expected = {
        "rollout/logprob_gap": 2 / 3,
        "rollout/logprob_gap_max": 1.0,
        "rollout/mismatch_kl": (math.exp(-1) + math.exp(1) - 2) / 3,
        "rollout/mismatch_ess": sum(weights) ** 2 / (3 * sum(w**2 for w in weights)),
        "rollout/mismatch_clipped": 1 / 3,
    }
    for got in run_spmd(gap_of_a_rank, 3, timeout_s=120):
        assert got == pytest.approx(expected)
