"""The whole loop runs on fakes, in the right order, and tells when the learning is silently wrong."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.engine.hf import HFEngine
from lightrft.errors import ConfigError, MismatchError, RewardError, UserError, WeightSyncError
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.testing.fake_engine import VOCAB_SIZE
from lightrft.testing.fake_strategy import FakeStrategy, fake_registry
from lightrft.testing.small_trainer import make_trainer, odd_tokens, prompts
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.trainer import SPMDPPOTrainer
from lightrft.types import Completion, Request, RequestOutput, Sample, SamplingParams
from lightrft.weights.buckets import WeightBucket


class StaleEngine(HFEngine):
    """Claims every new version and goes on with its old weights."""

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        for _ in buckets:
            pass
        self._version = version


class ShiftedEngine(HFEngine):
    """Its log-probs are too high by log 2."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        outputs = super().generate(requests, sampling)
        return [replace(o, completions=tuple(self._shifted(c) for c in o.completions)) for o in outputs]

    def _shifted(self, completion: Completion) -> Completion:
        return completion if completion.logprobs is None else replace(completion, logprobs=[x + math.log(2) for x in completion.logprobs])


SHIFTED = EngineSpec(
    name="shifted", target=f"{__name__}:ShiftedEngine", capabilities=frozenset({Capability.LOGPROBS, Capability.SEED, Capability.SLEEP_1})
)
STALE = EngineSpec(
    name="stale", target=f"{__name__}:StaleEngine", capabilities=frozenset({Capability.LOGPROBS, Capability.SEED, Capability.SLEEP_1})
)


def constant(samples: Sequence[Sample]) -> list[float]:
    return [0.0 for _ in samples]


def test_the_loop_on_fakes_calls_the_strategy_in_order(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, fsdp_cpu_offload=True)
    strategy = trainer.strategy
    assert isinstance(strategy, FakeStrategy)
    strategy.calls.clear()
    summary = trainer.fit()
    update = [*["backward"] * 3, "optimizer_step"]  # 8 completions in micro-batches of 3
    step = ["gather_and_generate", "maybe_load_optimizer", *update, *update, "maybe_offload_optimizer", "update_engine_weights"]
    evaluation = ["gather_and_generate"]
    assert strategy.calls == ["maybe_offload_optimizer", "update_engine_weights", *evaluation, *step, *step, *evaluation, "save_model"]
    assert strategy.weight_version == 3
    assert summary["steps"] == 2 and summary["strategy"] == "fake" and summary["world_size"] == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_every_rollout_samples_from_the_weights_of_the_last_update(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.strategy.update_engine_weights(trainer.actor)
    for version in (1, 2, 3):
        trainer.make_experience()
        assert set(trainer.experience.versions.tolist()) == {version}
        trainer.ppo_train(version)


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path: Path) -> None:
    def digest(name: str, seed: int) -> list[float]:
        trainer = make_trainer(tmp_path / name, seed=seed)
        trainer.fit()
        return [float(p.detach().double().sum()) for p in trainer.actor.parameters()]

    first = digest("a", 1)
    assert digest("b", 1) == first
    assert digest("c", 2) != first


def test_a_stale_engine_is_seen_and_stops_the_run(tmp_path: Path) -> None:
    changes: dict[str, Any] = dict(
        engine_type="stale", logprob_gap_prompts=2, logprob_gap_action="stop", logprob_gap_threshold=0.02, max_steps=4
    )
    with pytest.raises(MismatchError, match="stale engine weights"):
        make_trainer(tmp_path / "stale", registry=fake_registry(STALE), **changes).fit()
    honest = make_trainer(tmp_path / "hf", **changes | {"engine_type": "hf"})
    summary = honest.fit()
    assert summary["last"]["rollout/logprob_gap"] < 1e-4


def test_the_probe_stops_a_run_whose_engine_does_not_hold_the_actor(tmp_path: Path) -> None:
    changes: dict[str, Any] = dict(engine_type="stale", verify_sync_every=1, max_steps=3, learning_rate=5e-2)
    with pytest.raises(WeightSyncError, match="does not answer as the actor does after sync 2"):
        make_trainer(tmp_path / "stale", registry=fake_registry(STALE), **changes).fit()
    trainer = make_trainer(tmp_path / "hf", **changes | {"engine_type": "hf"})
    trainer.fit()
    assert trainer.ppo_train(1)["verify/gap"] < 1e-5


def test_a_correction_weighs_the_policy_loss(tmp_path: Path) -> None:
    def grad_norm(name: str, **changes: Any) -> float:
        settings: dict[str, Any] = dict(registry=fake_registry(SHIFTED), logprob_gap_prompts=2, max_norm=0)
        trainer = make_trainer(tmp_path / name, engine_type="shifted", **settings | changes)
        trainer.strategy.update_engine_weights(trainer.actor)
        trainer.make_experience()
        found = trainer.experience.sampled(trainer.experience.corrections)
        torch.testing.assert_close(found, torch.full_like(found, 0.5 if changes else 1.0), rtol=1e-4, atol=1e-4)
        return trainer.ppo_train(1)["train/grad_norm"]

    plain, corrected = grad_norm("plain"), grad_norm("corrected", logprob_gap_action="correct")
    assert plain > 0 and corrected == pytest.approx(0.5 * plain, rel=1e-3), "the engine's log-probs are log 2 too high: weights of 1/2"


def test_the_probe_is_asked_at_the_first_syncs_and_then_at_its_cadence(tmp_path: Path) -> None:
    make_trainer(tmp_path, engine_type="hf", verify_sync_every=2, max_steps=4, num_episodes=4, temperature=0.7).fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows if "time/verify_s" in row} == {0, 1, 2, 4}
    assert max(row["verify/gap"] for row in rows if "verify/gap" in row) < 1e-5


@pytest.mark.parametrize("every", [0, 1])
def test_an_engine_that_drops_its_weights_asleep_has_them_for_every_rollout(tmp_path: Path, every: int) -> None:
    summary = make_trainer(
        tmp_path, engine_type="hf", engine_sleep_level=2, eval_every=1, verify_sync_every=every, num_episodes=3, max_steps=3
    ).fit()
    assert summary["steps"] == 3 and summary["eval_after"]


def test_another_temperature_does_not_look_like_a_gap(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, engine_type="hf", logprob_gap_prompts=2, temperature=0.5)
    trainer.strategy.update_engine_weights(trainer.actor)
    assert trainer.make_experience()["rollout/logprob_gap"] < 1e-5


def test_a_dead_reward_is_reported_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, reward=constant, dead_reward_steps=2, max_steps=3)
    before = [p.detach().clone() for p in trainer.actor.parameters()]
    trainer.fit()
    out = capsys.readouterr().out
    assert out.count("WARNING: reward is 0.0 for all") == 1 and "nothing can be learned" in out
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.actor.parameters(), strict=True)), "no advantage, no change"


def test_a_failing_reward_names_itself(tmp_path: Path) -> None:
    def short(samples: Sequence[Sample]) -> list[float]:
        return [1.0]

    with pytest.raises(RewardError, match="'short' returned 1 numbers"):
        make_trainer(tmp_path, reward=short).fit()


def test_kl_keeps_the_actor_near_the_initial_model(tmp_path: Path) -> None:
    def distance(name: str, **changes: Any) -> float:
        trainer = make_trainer(tmp_path / name, engine_type="hf", max_steps=6, **changes)
        trainer.fit()
        start = tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE)
        ids = torch.arange(3, 13)[None]
        mine, other = (m(input_ids=ids).logits.detach().log_softmax(-1) for m in (trainer.actor, start))
        return float((other.exp() * (other - mine)).sum(-1).mean())

    free = distance("free")
    assert distance("loss", kl_coef=20.0, kl_estimator="k2") < free / 2
    assert distance("reward", kl_coef=20.0, kl_estimator="k1", kl_in="reward") < free


def test_kl_as_reward_is_subtracted_by_hand(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, kl_coef=0.5, kl_estimator="k1", kl_in="reward", n_samples_per_prompt=2, train_batch_size=8)
    trainer.strategy.update_engine_weights(trainer.actor)
    maker = trainer.experience_maker
    scored = maker.score(maker.reward(maker.generate(prompts(1))), seed=0)
    lengths = scored.num_sampled
    kl = torch.repeat_interleave(torch.tensor([0.4, 0.2]) / lengths, lengths)
    by_hand = replace(
        scored,
        rewards=torch.tensor([1.0, 0.0], dtype=torch.float64),
        old_logprobs=torch.zeros_like(scored.old_logprobs),
        reference_logprobs=scored.on_tokens(-kl),
    )
    found = maker.advantages(by_hand)
    # 1 - 0.5 * 0.4 = 0.8 against 0 - 0.5 * 0.2 = -0.1: standard scores of two are +-1/sqrt(2)
    assert float(found.by_sequence(found.advantages)[0][0]) == pytest.approx(2**-0.5, abs=1e-4)


def test_evaluation_counts_each_prompt_once(tmp_path: Path) -> None:
    def index_of(samples: Sequence[Sample]) -> list[float]:
        return [float(s.answer or "nan") for s in samples]

    trainer = make_trainer(tmp_path, reward=index_of)
    trainer.strategy.update_engine_weights(trainer.actor)
    got = trainer.evaluate()
    assert got["eval/reward"] == got["eval/index_of"] == pytest.approx((0 + 2 + 4) / 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"critic": torch.nn.Linear(1, 1)}, "uses no critic; pass critic=None"),
        ({"critic_optim": object()}, "pass critic_optim=None"),
        ({"ema_model": torch.nn.Linear(1, 1)}, "pass ema_model=None"),
        ({"initial_model": torch.nn.Linear(1, 1)}, "kl_coef=0 never compares"),
        ({"reward_model": torch.nn.Linear(1, 1)}, "is not a function"),
        ({"reward_model": []}, "at least one reward function"),
    ],
)
def test_arguments_that_nothing_would_use_are_refused(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    trainer = make_trainer(tmp_path)
    arguments: dict[str, Any] = dict(
        strategy=trainer.strategy, actor=trainer.actor, reward_model=odd_tokens, actor_optim=trainer.actor_optim,
        tokenizer=trainer.tokenizer,
        prompts=prompts(),
    )  # fmt: skip
    with pytest.raises(ValueError, match=words):
        SPMDPPOTrainer(**arguments | given)


def test_what_the_engine_cannot_do_is_refused_before_it_samples(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="logprob_gap_prompts=1 needs the capability 'logprobs'"):
        make_trainer(tmp_path, logprob_gap_prompts=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_batch_size": 100}, "train_batch_size=100 does not divide the samples of one rollout"),
        ({"keep_best": 2}, "keep_best=2 has no effect with save_every=0"),
        ({"kl_in": "reward"}, "kl_in='reward' has no effect with kl_coef=0.0"),
        ({"loggers": ["jsonl", "nobody"]}, "unknown logger 'nobody'"),
        ({"dual_clip": 0.5}, "dual_clip=0.5 is not above 1"),
    ],
)
def test_a_script_s_trainer_has_the_lock_of_the_command_line(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        make_trainer(tmp_path, **changes)


def test_an_adaptive_kl_coefficient_moves_with_the_distance(tmp_path: Path) -> None:
    changes: dict[str, Any] = dict(kl_coef=0.1, kl_target=1e-3, kl_horizon=16.0, num_episodes=4, max_steps=4, engine_type="hf")
    trainer = make_trainer(tmp_path, **changes)
    trainer.fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/kl_coef" in row]
    assert steps[0]["train/kl_coef"] == 0.1
    # 16 completions of a horizon of 16: at distance 0 the error is at its bound of -0.2, later beyond the target at 0.2
    expected = 0.1
    for row in steps:
        assert row["train/kl_coef"] == pytest.approx(expected)
        expected *= 1 + min(max((row["rollout/kl"] - 1e-3) / 1e-3, -0.2), 0.2)
    assert trainer.experience_maker.kl_control.coef == pytest.approx(expected)


def test_completions_that_have_nothing_to_compare_with_are_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, n_samples_per_prompt=2, train_batch_size=8)
    trainer.strategy.update_engine_weights(trainer.actor)
    maker = trainer.experience_maker
    for _ in range(2):
        scored = maker.score(maker.reward(maker.generate(prompts(2))), seed=0)
        maker.advantages(scored.select(torch.arange(1, len(scored))))
        maker.conclude(maker.metrics.reduce(None))
    assert capsys.readouterr().out.count("50% of this rollout's prompts have a single completion") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy_loss": "gspo", "logprob_gap_action": "correct"}, "policy_loss='gspo' has one ratio for a whole completion"),
        ({"n_samples_per_prompt": 1, "train_batch_size": 4}, "n_samples_per_prompt=1 gives it nothing; use at least 2"),
        ({"kl_coef": 0.1, "kl_estimator": "k1"}, "kl_estimator='k1' with kl_in='loss' has a gradient of zero mean"),
        ({"advantage_estimator": "grop"}, "did you mean 'grpo'?"),
    ],
)
def test_a_script_is_told_of_pairs_that_do_not_go_together_too(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        make_trainer(tmp_path, engine_type="hf", **changes)
