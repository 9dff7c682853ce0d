"""The update is a function of the batch alone: against the loss written out by hand, for every way to partition the batch."""

import math

import pytest
import torch

from lightrft.algorithms.ppo_clip import ppo_clip
from lightrft.batch.micro_batch import padded
from lightrft.batch.planning import Batching, by_length, epochs
from lightrft.batch.stages import Sampled, Scored, Trainable
from lightrft.config.load import make_config
from lightrft.errors import MismatchError
from lightrft.experience.batching import update_batching
from lightrft.experience.gap import act_on_gap, add_gap
from lightrft.experience.metrics import add_rollout_metrics
from lightrft.experience.scoring import score_logprobs
from lightrft.models.score import score_tokens
from lightrft.observe.metrics import StepMetrics
from lightrft.observe.warnings_log import Warnings
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.batches import batch_of, rows_of
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.trainer.update import PolicyUpdate

PROMPTS = [[3, 4], [5, 6, 7], [8], [9, 10], [11, 3, 4], [5], [6, 7], [8, 9]]
COMPLETIONS = [[12, 13, 14, 1], [2], [15, 16], [3, 3, 3, 3, 3, 3], [4, 1], [7, 8, 9], [10], [11, 12]]
ADVANTAGES = [1.0, -0.5, 0.25, -1.5, 2.0, -0.25, 0.5, -1.0]


def config(**values: object):  # type: ignore[no-untyped-def]
    base = {"strategy": "fake", "engine_type": "fake", "max_norm": 0.0, "train_batch_size": 8, "eps_clip": 0.2}
    return make_config(base | values)


def make_strategy(**values: object):  # type: ignore[no-untyped-def]
    return get_strategy(config(**values), registry=fake_registry())


PAIRS = list(zip(PROMPTS, COMPLETIONS, strict=True))


def experience(old_shift: float = 0.0, *, shifts: list[float] | None = None, advantages: list[float] = ADVANTAGES) -> Trainable:
    """Old log-probs are the model's own plus a shift, so the ratio is exp(-shift)."""
    model = tiny_causal_lm(seed=4, vocab_size=32)
    own = [by_hand(model, prompt, completion).detach() for prompt, completion in PAIRS]
    old = [values + shift for values, shift in zip(own, shifts or [old_shift] * 8, strict=True)]
    return batch_of(
        Trainable, PAIRS, reasons=["length" if index == 3 else "stop" for index in range(8)],
        old_logprobs=old, reference_logprobs=[values - 0.3 for values in old], advantages=advantages,
    )  # fmt: skip


def by_hand(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probs of one completion, without padding or batching."""
    logprobs = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    return torch.stack([logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(completion)])


def steps_of(batch: Trainable, strategy, *, seed: int = 1):  # type: ignore[no-untyped-def]
    plan = epochs(
        batch, update_batching(strategy.config, strategy, model=tiny_causal_lm(vocab_size=32)), axis=strategy.mesh.data, seed=seed
    )
    return [step for epoch in plan for step in epoch.steps]


def gradient_after(strategy, rows: Trainable) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    """The gradient that the strategy's step sees: taken just before it."""
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(seed=4, vocab_size=32), optimizer=AdamWSettings(learning_rate=1e-3))
    seen: dict[str, torch.Tensor] = {}
    step = strategy._step

    def spying_step(*args):  # type: ignore[no-untyped-def]
        seen.update({name: p.grad.clone() for name, p in model.named_parameters()})
        return step(*args)

    strategy._step = spying_step
    update = PolicyUpdate(strategy=strategy, config=strategy.config, actor=model, optimizer=optimizer, scheduler=None, policy_loss=ppo_clip)
    update.run(rows, seed=0)
    return seen


def expected_gradient(batch: Trainable, kl_coef: float = 0.0) -> dict[str, torch.Tensor]:
    """Token mean of -min(rho A, clip(rho) A) + kl_coef * k2, written out token by token, in float64: the reference rounds nothing."""
    model = tiny_causal_lm(seed=4, vocab_size=32).double()
    terms = []
    for row in rows_of(batch):
        for t, logprob in enumerate(by_hand(model, row.prompt_ids, row.completion_ids)):
            ratio = (logprob - row.old_logprobs[t]).exp()
            advantage = float(row.advantages[t])
            terms.append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
            terms[-1] = terms[-1] + kl_coef * (logprob - row.reference_logprobs[t]) ** 2 / 2
    (sum(terms) / 21).backward()  # 4 + 1 + 2 + 6 + 2 + 3 + 1 + 2 tokens
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shift", [0.0, -0.4])
def test_the_gradient_does_not_depend_on_micro_batches(shift: float) -> None:
    """Cuts differ, and from the loss by hand in float64, by what float32 rounds in a model, which CPUs do differently."""
    expected = expected_gradient(experience(shift))
    whole = gradient_after(make_strategy(micro_train_batch_size=8), experience(shift))
    assert whole.keys() == expected.keys()
    assert farthest(whole, expected) <= 1e-5
    for micro in (1, 2, 3):
        assert farthest(gradient_after(make_strategy(micro_train_batch_size=micro), experience(shift)), whole) <= 5e-6


def farthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to each tensor's largest value."""
    return max(float((found[name] - value).abs().max()) / max(float(value.abs().max()), 1e-3) for name, value in expected.items())


def test_kl_in_the_loss_has_its_gradient() -> None:
    got = gradient_after(make_strategy(micro_train_batch_size=3, kl_coef=0.7, kl_estimator="k2"), experience())
    assert farthest(got, expected_gradient(experience(), kl_coef=0.7)) <= 1e-5


def test_several_steps_use_every_completion_once() -> None:
    strategy = make_strategy(train_batch_size=2, micro_train_batch_size=2)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(seed=4, vocab_size=32), optimizer=AdamWSettings(learning_rate=1e-3))
    update = PolicyUpdate(strategy=strategy, config=strategy.config, actor=model, optimizer=optimizer, scheduler=None, policy_loss=ppo_clip)
    rows = experience()
    steps = steps_of(rows, strategy)
    assert [len(step.index) for step in steps] == [2, 2, 2, 2]
    assert [step.num_tokens for step in steps] == [sum(len(COMPLETIONS[at]) for at in step.index) for step in steps]
    order = torch.cat([step.index for step in steps]).tolist()
    assert sorted(order) == list(range(8)) and order != list(range(8)), "shuffled"
    metrics = update.run(rows, seed=1)
    assert strategy.calls.count("optimizer_step") == 4
    assert metrics["train/skipped_steps"] == 0


def test_metrics_of_the_update_by_hand() -> None:
    strategy = make_strategy(micro_train_batch_size=3)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(seed=4, vocab_size=32), optimizer=AdamWSettings(learning_rate=1e-3))
    update = PolicyUpdate(strategy=strategy, config=strategy.config, actor=model, optimizer=optimizer, scheduler=None, policy_loss=ppo_clip)
    metrics = update.run(experience(-0.4), seed=0)
    ratio = 2.718281828**0.4
    assert metrics["train/ratio"] == pytest.approx(ratio, rel=1e-5)
    assert metrics["train/ess"] == pytest.approx(1.0, rel=1e-5), "all tokens have the same ratio"
    # clipped: rho > 1.2 with A > 0, which are completions 0, 2, 4, 6 with 4 + 2 + 2 + 1 tokens
    assert metrics["train/clip_fraction"] == pytest.approx(9 / 21)
    signed = sum(len(c) * a * (1.2 if a > 0 else ratio) for c, a in zip(COMPLETIONS, ADVANTAGES, strict=True))
    assert metrics["train/loss"] == pytest.approx(-signed / 21, rel=1e-5)
    assert metrics["train/lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_the_effective_sample_size_by_hand(micro: int) -> None:
    strategy = make_strategy(micro_train_batch_size=micro)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(seed=4, vocab_size=32), optimizer=AdamWSettings(learning_rate=1e-3))
    update = PolicyUpdate(strategy=strategy, config=strategy.config, actor=model, optimizer=optimizer, scheduler=None, policy_loss=ppo_clip)
    rows = experience(shifts=[0.0] + [-math.log(3.0)] * 7)  # the ratio of their tokens is 3, that of the first completion 1
    one, three = len(COMPLETIONS[0]), sum(map(len, COMPLETIONS[1:]))
    expected = (one + 3 * three) ** 2 / ((one + three) * (one + 9 * three))
    assert update.run(rows, seed=0)["train/ess"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("micro", [1, 3, 8])
def test_log_probs_do_not_depend_on_padding(micro: int, temperature: float) -> None:
    model = tiny_causal_lm(seed=4, vocab_size=32)
    batch = batch_of(Sampled, PAIRS)
    batching = Batching(train_batch_size=8, micro_batch_size=micro)
    parts = batching.micro_batches(batch, torch.arange(8))
    got = score_logprobs(model, batch, parts, strategy=make_strategy(), batching=batching, temperatures=(temperature, 1.0))
    for at, used in enumerate((temperature, 1.0)):
        for (prompt, completion), values in zip(PAIRS, batch.by_sequence(got[at]), strict=True):
            logprobs = (model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].detach() / used).log_softmax(-1)
            expected = [float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(completion)]
            assert values.tolist() == pytest.approx(expected, abs=1e-5)


def test_dropout_does_not_part_the_trained_policy_from_the_sampled_one() -> None:
    strategy = make_strategy()
    model = tiny_causal_lm(seed=4, vocab_size=32)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    model, optimizer = strategy.prepare_trainable(model, optimizer=AdamWSettings(learning_rate=1e-3))
    update = PolicyUpdate(strategy=strategy, config=strategy.config, actor=model, optimizer=optimizer, scheduler=None, policy_loss=ppo_clip)
    assert update.run(experience(), seed=0)["train/ratio"] == pytest.approx(1.0, abs=1e-5)


def test_a_rank_without_rows_takes_part_with_weight_zero() -> None:
    micro = padded(experience(), torch.zeros(0, dtype=torch.int64), device=torch.device("cpu"))
    model = tiny_causal_lm(seed=4, vocab_size=32)
    [logprobs] = score_tokens(model, micro, temperatures=(1.0,)).logprobs
    assert logprobs.shape == (0,) and micro.grid.spread(logprobs).shape == (0, 0)
    micro.grid.spread(logprobs).sum().backward()
    assert all(p.grad is not None for p in model.parameters()), "every parameter takes part"
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)


def test_micro_batches_are_sorted_by_length_and_complete() -> None:
    batch = batch_of(Sampled, PAIRS)
    parts = by_length(batch, torch.arange(8), size=3)
    assert [len(part) for part in parts] == [3, 3, 2]
    order = torch.cat(parts)
    assert batch.lengths[order].tolist() == sorted(batch.lengths.tolist()) and sorted(order.tolist()) == list(range(8))
    assert by_length(batch, torch.zeros(0, dtype=torch.int64), size=3) == []


def test_gap_by_hand_and_its_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    rows = batch_of(Sampled, [PAIRS[1], PAIRS[2], PAIRS[6]], engine_logprobs=[[-1.0], [-0.5, -0.25], None])
    strategy, metrics = make_strategy(), StepMetrics()
    add_gap(metrics, rows, rows.on_tokens(torch.tensor([-1.5, -0.5, -0.35, -9.0])))
    gap = metrics.reduce(strategy.world.group)
    weights = [math.exp(-0.5), 1.0, math.exp(-0.1)]
    assert gap == pytest.approx(
        {
            "rollout/logprob_gap": (0.5 + 0.0 + 0.1) / 3,
            "rollout/logprob_gap_max": 0.5,
            "rollout/mismatch_kl": (weights[0] - 1 + 0.5 + weights[2] - 1 + 0.1) / 3,
            "rollout/mismatch_ess": sum(weights) ** 2 / (3 * sum(w**2 for w in weights)),
            "rollout/mismatch_clipped": 0.0,
        }
    )
    unknown = batch_of(Sampled, [PAIRS[6]])
    add_gap(metrics, unknown, torch.zeros(3))
    assert metrics.reduce(strategy.world.group) == {}
    warnings = Warnings(world=strategy.world)
    act_on_gap(0.2, threshold=0.3, action="stop", warnings=warnings)
    assert capsys.readouterr().out == ""
    act_on_gap(0.2, threshold=0.1, action="warn", warnings=warnings)
    assert "gap 0.2 nats per token, threshold 0.1" in capsys.readouterr().out
    act_on_gap(0.2, threshold=0.1, action="correct", warnings=warnings)
    assert "the update is corrected by truncated importance sampling" in capsys.readouterr().out
    for action, bad in (("stop", 0.2), ("stop", math.nan), ("correct", math.nan), ("correct", math.inf)):
        with pytest.raises(MismatchError, match="stale engine weights"):
            act_on_gap(bad, threshold=0.1, action=action, warnings=warnings)  # type: ignore[arg-type]


def test_rollout_metrics_by_hand() -> None:
    rows = batch_of(
        Scored, PAIRS[:4], group_ids=[0, 0, 1, 1], rewards=[1.0, 0.0, 0.5, 0.5], reasons=["stop", "stop", "stop", "length"],
        old_logprobs=[-0.5] * 4,
    )  # fmt: skip
    metrics = StepMetrics()
    add_rollout_metrics(metrics, rows)
    assert metrics.reduce(None) == pytest.approx(
        {
            "rollout/reward": 0.5,
            "rollout/reward_std": (0.5 / 4) ** 0.5,
            "rollout/length_mean": 13 / 4,
            "rollout/length_max": 6.0,
            "rollout/truncated": 0.25,
            "rollout/zero_variance_groups": 0.5,
            "rollout/entropy": 0.5,
        }
    )


def test_several_epochs_see_every_completion_as_often() -> None:
    strategy = make_strategy(train_batch_size=4, max_epochs=3)
    rows = experience()
    steps = [step.index.tolist() for step in steps_of(rows, strategy)]
    assert [len(step) for step in steps] == [4] * 6
    for epoch in range(3):
        assert sorted(steps[2 * epoch] + steps[2 * epoch + 1]) == list(range(8))
    assert steps[0] != steps[2], "each epoch is shuffled anew"


def test_a_slice_that_does_not_divide_is_cut_evenly() -> None:
    strategy = make_strategy(train_batch_size=4)
    assert [len(s.index) for s in steps_of(experience().select(torch.arange(7)), strategy)] == [3, 4]
    assert [s.num_sequences for s in steps_of(batch_of(Trainable, []), strategy)] == [0.0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_entropy_bonus_is_exact_and_has_its_gradient(temperature: float) -> None:
    strategy = make_strategy(micro_train_batch_size=3, entropy_coef=0.5, temperature=temperature)
    rows = experience(advantages=[0.0] * 8)
    got = gradient_after(strategy, rows)
    model = tiny_causal_lm(seed=4, vocab_size=32).double()
    total = torch.zeros((), dtype=torch.float64)
    for prompt, completion in PAIRS:
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0] / temperature
        for t in range(len(completion)):
            p = logits[len(prompt) - 1 + t].softmax(-1)
            total = total - (p * p.log()).sum()
    (-0.5 * total / 21).backward()
    assert farthest(got, {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}) <= 2e-6
