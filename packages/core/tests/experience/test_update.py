"""Is the update a function of the batch alone? Against the loss written out by hand, for every way to cut the batch."""

import itertools
import math

import pytest
import torch

from lightrft.algorithms.ppo_clip import ppo_clip
from lightrft.config.load import make_config
from lightrft.errors import MismatchError
from lightrft.experience.gap import act_on_gap, logprob_gap
from lightrft.experience.metrics import rollout_metrics
from lightrft.experience.microbatch import micro_batches
from lightrft.experience.scoring import score_logprobs
from lightrft.experience.trajectory import Trajectory
from lightrft.models.logprobs import token_batch, token_logprobs
from lightrft.observe.warnings_log import Warnings
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.trainer.minibatches import mini_batches
from lightrft.trainer.update import PolicyUpdate
from lightrft.types import Completion, Sample

PROMPTS = [[3, 4], [5, 6, 7], [8], [9, 10], [11, 3, 4], [5], [6, 7], [8, 9]]
COMPLETIONS = [[12, 13, 14, 1], [2], [15, 16], [3, 3, 3, 3, 3, 3], [4, 1], [7, 8, 9], [10], [11, 12]]
ADVANTAGES = [1.0, -0.5, 0.25, -1.5, 2.0, -0.25, 0.5, -1.0]


def config(**values: object):  # type: ignore[no-untyped-def]
    base = {"strategy": "fake", "engine_type": "fake", "max_norm": 0.0, "train_batch_size": 8, "eps_clip": 0.2}
    return make_config(base | values)


def make_strategy(**values: object):  # type: ignore[no-untyped-def]
    return get_strategy(config(**values), registry=fake_registry())


def trajectory(index: int, *, logprobs: list[float] | None = None, reward: float = 0.0, group: int = 0) -> Trajectory:
    ids = COMPLETIONS[index]
    return Trajectory(
        prompt_ids=PROMPTS[index],
        completion=Completion(token_ids=ids, finish_reason="length" if index == 3 else "stop", weight_version=0, logprobs=logprobs),
        sample=Sample(prompt="", completion=""),
        group_id=group,
        reward=reward,
    )


def experience(old_shift: float = 0.0) -> list[Trajectory]:
    """Old log-probs are the model's own plus a shift, so the ratio is exp(-shift)."""
    model = tiny_causal_lm(seed=4, vocab_size=32)
    made = [trajectory(index) for index in range(8)]
    for row, advantage in zip(made, ADVANTAGES, strict=True):
        row.old_logprobs = by_hand(model, row).detach() + old_shift
        row.initial_logprobs = row.old_logprobs - 0.3
        row.advantages = torch.full((row.num_tokens,), advantage)
    return made


def by_hand(model: torch.nn.Module, row: Trajectory) -> torch.Tensor:
    """Log-probs of one completion, without padding or batching."""
    ids = torch.tensor([[*row.prompt_ids, *row.completion.token_ids]])
    logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    return torch.stack([logprobs[len(row.prompt_ids) - 1 + t, token] for t, token in enumerate(row.completion.token_ids)])


def gradient_after(strategy, rows: list[Trajectory]) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
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


def expected_gradient(rows: list[Trajectory], kl_coef: float = 0.0) -> dict[str, torch.Tensor]:
    """Token mean of -min(rho A, clip(rho) A) + kl_coef * k2, written out token by token, in float64: the reference rounds nothing."""
    model = tiny_causal_lm(seed=4, vocab_size=32).double()
    terms = []
    for row in rows:
        for t, logprob in enumerate(by_hand(model, row)):
            ratio = (logprob - row.old_logprobs[t]).exp()  # type: ignore[index]
            advantage = float(row.advantages[t])  # type: ignore[index]
            terms.append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
            terms[-1] = terms[-1] + kl_coef * (logprob - row.initial_logprobs[t]) ** 2 / 2  # type: ignore[index]
    (sum(terms) / 21).backward()  # 4 + 1 + 2 + 6 + 2 + 3 + 1 + 2 tokens
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shift", [0.0, -0.4])
def test_the_gradient_does_not_depend_on_micro_batches(shift: float) -> None:
    """Cuts differ by 1e-6 at most; from the loss by hand, in float64, also by what float32 rounds in a model, which CPUs do differently."""
    expected = expected_gradient(experience(shift))
    whole = gradient_after(make_strategy(micro_train_batch_size=8), experience(shift))
    assert whole.keys() == expected.keys()
    assert farthest(whole, expected) <= 2e-6
    for micro in (1, 2, 3):
        assert farthest(gradient_after(make_strategy(micro_train_batch_size=micro), experience(shift)), whole) <= 1e-6


def farthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to each tensor's largest value."""
    return max(float((found[name] - value).abs().max()) / max(float(value.abs().max()), 1e-3) for name, value in expected.items())


def test_kl_in_the_loss_has_its_gradient() -> None:
    got = gradient_after(make_strategy(micro_train_batch_size=3, kl_coef=0.7, kl_estimator="k2"), experience())
    assert farthest(got, expected_gradient(experience(), kl_coef=0.7)) <= 2e-6


def test_several_steps_use_every_completion_once() -> None:
    strategy = make_strategy(train_batch_size=2, micro_train_batch_size=2)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(seed=4, vocab_size=32), optimizer=AdamWSettings(learning_rate=1e-3))
    update = PolicyUpdate(strategy=strategy, config=strategy.config, actor=model, optimizer=optimizer, scheduler=None, policy_loss=ppo_clip)
    rows = experience()
    cut = mini_batches(rows, config=strategy.config, strategy=strategy, seed=1)
    steps = [step.rows for step in cut]
    assert [len(s) for s in steps] == [2, 2, 2, 2]
    assert [step.num_tokens for step in cut] == [sum(t.num_tokens for t in s) for s in steps]
    assert sorted(map(id, itertools.chain(*steps))) == sorted(map(id, rows))
    assert [id(t) for t in itertools.chain(*steps)] != [id(t) for t in rows], "shuffled"
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
    rows = experience()
    for row in rows[1:]:
        assert row.old_logprobs is not None
        row.old_logprobs = row.old_logprobs - math.log(3.0)  # the ratio of their tokens is 3, that of the first completion 1
    one, three = rows[0].num_tokens, sum(row.num_tokens for row in rows[1:])
    expected = (one + 3 * three) ** 2 / ((one + three) * (one + 9 * three))
    assert update.run(rows, seed=0)["train/ess"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("micro", [1, 3, 8])
def test_log_probs_do_not_depend_on_padding(micro: int, temperature: float) -> None:
    model = tiny_causal_lm(seed=4, vocab_size=32)
    rows = [trajectory(index) for index in range(8)]
    got = score_logprobs(model, rows, strategy=make_strategy(), micro_batch_size=micro, temperature=temperature)
    for row, values in zip(rows, got, strict=True):
        ids = torch.tensor([[*row.prompt_ids, *row.completion.token_ids]])
        logprobs = (model(input_ids=ids).logits[0].detach() / temperature).log_softmax(-1)
        expected = [float(logprobs[len(row.prompt_ids) - 1 + t, token]) for t, token in enumerate(row.completion.token_ids)]
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
    batch = token_batch([], device=torch.device("cpu"))
    model = tiny_causal_lm(seed=4, vocab_size=32)
    logprobs = token_logprobs(model, batch)
    assert logprobs.shape == (1, 1) and logprobs.item() == 0.0
    logprobs.sum().backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)


def test_micro_batches_are_sorted_by_length_and_complete() -> None:
    rows = [trajectory(index) for index in range(8)]
    cut = micro_batches(rows, size=3)
    assert [len(part) for part in cut] == [3, 3, 2]
    lengths = [t.length for part in cut for t in part]
    assert lengths == sorted(lengths)
    assert sorted(id(t) for part in cut for t in part) == sorted(map(id, rows))
    assert micro_batches([], size=3) == []


def test_gap_by_hand_and_its_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [trajectory(1, logprobs=[-1.0]), trajectory(2, logprobs=[-0.5, -0.25]), trajectory(6)]
    mine = [torch.tensor([-1.5]), torch.tensor([-0.5, -0.35]), torch.tensor([-9.0])]
    strategy = make_strategy()
    gap = logprob_gap(rows, mine, strategy=strategy)
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
    assert logprob_gap([trajectory(6)], [torch.zeros(1)], strategy=strategy) == {}
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
    rows = [
        trajectory(0, reward=1.0, group=0), trajectory(1, reward=0.0, group=0),
        trajectory(2, reward=0.5, group=1), trajectory(3, reward=0.5, group=1),
    ]  # fmt: skip
    for row in rows:
        row.old_logprobs = torch.full((row.num_tokens,), -0.5)
    got = rollout_metrics(rows, strategy=make_strategy())
    assert got == pytest.approx(
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
    steps = mini_batches(rows, config=strategy.config, strategy=strategy, seed=1)
    assert [len(step.rows) for step in steps] == [4] * 6
    for epoch in range(3):
        assert sorted(id(t) for step in steps[2 * epoch : 2 * epoch + 2] for t in step.rows) == sorted(map(id, rows))
    assert [id(t) for t in steps[0].rows] != [id(t) for t in steps[2].rows], "each epoch is shuffled anew"


def test_a_share_that_does_not_divide_is_cut_evenly() -> None:
    strategy = make_strategy(train_batch_size=4)
    assert [len(s.rows) for s in mini_batches(experience()[:7], config=strategy.config, strategy=strategy, seed=1)] == [3, 4]
    assert [s.num_sequences for s in mini_batches([], config=strategy.config, strategy=strategy, seed=1)] == [0.0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_entropy_bonus_is_exact_and_has_its_gradient(temperature: float) -> None:
    strategy = make_strategy(micro_train_batch_size=3, entropy_coef=0.5, temperature=temperature)
    rows = experience()
    for row in rows:
        row.advantages = torch.zeros(row.num_tokens)
    got = gradient_after(strategy, rows)
    model = tiny_causal_lm(seed=4, vocab_size=32).double()
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        logits = model(input_ids=torch.tensor([[*row.prompt_ids, *row.completion.token_ids]])).logits[0] / temperature
        for t in range(row.num_tokens):
            p = logits[len(row.prompt_ids) - 1 + t].softmax(-1)
            total = total - (p * p.log()).sum()
    (-0.5 * total / 21).backward()
    assert farthest(got, {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}) <= 2e-6
