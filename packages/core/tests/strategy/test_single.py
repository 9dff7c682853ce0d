"""The reference strategy is right. Against numbers worked by hand and against bare torch."""

from __future__ import annotations

import math
import weakref
from pathlib import Path

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.errors import CapabilityError, ConfigError, StrategyStateError
from lightrft.strategy import get_strategy
from lightrft.strategy.single import SingleStrategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.architectures import make_model
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, accumulate, count, full_parameters, largest_difference, loss_sum, ragged_rows, train


@pytest.fixture
def strategy(monkeypatch: pytest.MonkeyPatch) -> StrategyBase:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # numbers by hand are the CPU's
    return get_strategy(make_config({"strategy": "single"}), registry=fake_registry())


def line(weight: float) -> torch.nn.Linear:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, weight)
    return model


def backward_by_hand(strategy: StrategyBase, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """w = 2; residuals w x - y = 1 and 3 times x = 1 and 2, each over 2 tokens: the gradient is (1 + 6) / 2 = 3.5."""
    for x, y, final in ((1.0, 1.0, False), (2.0, 1.0, True)):
        strategy.backward((model(torch.tensor([x])) - y).square().sum() / 2 / 2, model, optimizer, final=final)


def test_gradient_norm_and_first_step_by_hand(strategy: StrategyBase) -> None:
    model, optimizer = strategy.prepare_trainable(line(2.0), optimizer=AdamWSettings(learning_rate=0.125, eps=0.0))
    backward_by_hand(strategy, model, optimizer)
    assert model.weight.grad.item() == 3.5
    result = strategy.optimizer_step(optimizer, model, None, max_norm=0.0)
    assert result.grad_norm == 3.5 and not result.skipped
    assert model.weight.item() == 1.875  # AdamW's first step without eps moves by the learning rate
    assert model.weight.grad is None


def test_weight_decay_and_betas_reach_the_optimizer(strategy: StrategyBase) -> None:
    settings = AdamWSettings(learning_rate=0.1, betas=(0.5, 0.75), eps=0.25, weight_decay=0.5)
    model, optimizer = strategy.prepare_trainable(line(2.0), optimizer=settings)
    backward_by_hand(strategy, model, optimizer)
    strategy.optimizer_step(optimizer, model, None, max_norm=0.0)
    # 2 - 2 * 0.1 * 0.5 of decay, then 0.1 * 3.5 / (3.5 + 0.25)
    assert model.weight.item() == pytest.approx(1.9 - 0.1 * 3.5 / 3.75, rel=1e-6)
    assert optimizer.state[model.weight]["exp_avg"].item() == 1.75
    assert optimizer.state[model.weight]["exp_avg_sq"].item() == pytest.approx(3.5**2 / 4)


@pytest.mark.parametrize(("max_norm", "momentum"), [(0.0, 0.35), (7.0, 0.35), (1.75, 0.175), (None, 0.1)])
def test_clipping_0_is_off_and_none_is_the_configurations(strategy: StrategyBase, max_norm: float | None, momentum: float) -> None:
    assert strategy.config.max_norm == 1.0
    model, optimizer = strategy.prepare_trainable(line(2.0), optimizer=AdamWSettings(learning_rate=0.1))
    backward_by_hand(strategy, model, optimizer)
    assert strategy.optimizer_step(optimizer, model, None, max_norm=max_norm).grad_norm == 3.5
    assert optimizer.state[model.weight]["exp_avg"].item() == pytest.approx(momentum, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_skips_step_and_scheduler(strategy: StrategyBase, bad: float, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = strategy.prepare_trainable(line(2.0), optimizer=AdamWSettings(learning_rate=0.1))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(2):
        strategy.backward((model(torch.ones(1)) * bad).sum(), model, optimizer)
        assert strategy.optimizer_step(optimizer, model, scheduler, "actor").skipped
    assert model.weight.item() == 2.0 and model.weight.grad is None and not optimizer.state
    assert scheduler.last_epoch == 0
    assert strategy.skipped_steps == {"actor": 2}
    assert "step skipped on all ranks (2 so far)" in capsys.readouterr().out
    backward_by_hand(strategy, model, optimizer)
    assert not strategy.optimizer_step(optimizer, model, scheduler, "actor").skipped
    assert scheduler.last_epoch == 1


def five_steps_here_and_in_bare_torch() -> float:
    strategy = get_strategy(make_config({"strategy": "single"}), registry=fake_registry())
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    train(strategy, model, optimizer, max_norm=0.5)
    bare = tiny_causal_lm()
    adamw = torch.optim.AdamW(bare.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
    for step in range(5):
        rows = ragged_rows(step)
        (loss_sum(bare, rows) / count(rows)).backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 0.5)
        adamw.step()
        adamw.zero_grad()
    assert largest_difference(dict(bare.named_parameters()), dict(tiny_causal_lm().named_parameters())) > 1e-3
    return largest_difference(full_parameters(strategy, model), dict(bare.named_parameters()))


def test_micro_batches_give_the_update_of_one_batch_in_bare_torch() -> None:
    assert run_spmd(five_steps_here_and_in_bare_torch, 1)[0] < 3e-5


def test_only_parameters_that_require_gradients_are_trained(strategy: StrategyBase) -> None:
    model = tiny_causal_lm()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = model.model.embed_tokens.weight.clone()
    model, optimizer = strategy.prepare_trainable(model, optimizer=SETTINGS)
    accumulate(strategy, model, optimizer, 0)
    strategy.optimizer_step(optimizer, model, None)
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters())) - 1


def test_export_is_bitwise_bounded_cast_and_knows_ties(strategy: StrategyBase) -> None:
    model = tiny_causal_lm(tie=True)
    expected = dict(model.named_parameters())
    buckets = list(strategy._export_weights(model, torch.bfloat16, 20_000))
    assert len(buckets) > 3
    assert all(sum(w.tensor.numel() * 2 for w in bucket) <= 20_000 or len(bucket) == 1 for bucket in buckets)
    weights = [w for bucket in buckets for w in bucket]
    assert [w.names[0] for w in weights] == list(expected)
    assert weights[0].names == ("model.embed_tokens.weight", "lm_head.weight")
    assert all(torch.equal(w.tensor, expected[w.names[0]].bfloat16()) and not w.tensor.requires_grad for w in weights)
    assert largest_difference(full_parameters(strategy, model), expected) == 0


def test_prepare_model_freezes_and_refuses_what_it_cannot_do(strategy: StrategyBase) -> None:
    frozen = strategy.prepare_model(tiny_causal_lm().train(), shard_size=1)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    with pytest.raises(ValueError, match="shard_size=2 does not divide the world size 1"):
        strategy.prepare_model(frozen, shard_size=2)
    with pytest.raises(ValueError, match="no parameter of the model requires gradients"):
        strategy.prepare_trainable(frozen, optimizer=SETTINGS)


def test_guards_name_what_is_wrong(strategy: StrategyBase) -> None:
    model, optimizer = strategy.prepare_trainable(line(1.0), optimizer=SETTINGS)
    with pytest.raises(ValueError, match=r"loss has shape \(1,\)"):
        strategy.backward(model(torch.ones(1)), model, optimizer)
    with pytest.raises(StrategyStateError, match="call setup_inference_engine first"):
        strategy.wakeup_inference_engine()


def test_resume_is_bitwise(strategy: StrategyBase, tmp_path: Path) -> None:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(tie=True), optimizer=SETTINGS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(strategy, model, optimizer, last=3, scheduler=scheduler)
    strategy.save_ckpt(tmp_path / "c", model=model, optimizer=optimizer, scheduler=scheduler, client_state={"step": 3})
    train(strategy, model, optimizer, first=3, scheduler=scheduler)
    other, other_optimizer = strategy.prepare_trainable(tiny_causal_lm(tie=True, seed=5), optimizer=SETTINGS)
    other_scheduler = torch.optim.lr_scheduler.LambdaLR(other_optimizer, lambda step: 1 / (1 + step))
    assert strategy.load_ckpt(tmp_path / "c", model=other, optimizer=other_optimizer, scheduler=other_scheduler) == {"step": 3}
    train(strategy, other, other_optimizer, first=3, scheduler=other_scheduler)
    assert largest_difference(full_parameters(strategy, other), full_parameters(strategy, model)) == 0


def started_on_two() -> list[str]:
    registry = fake_registry()
    config = make_config({"strategy": "single"})
    found = []
    with pytest.raises(ConfigError) as refused:
        get_strategy(config, registry=registry)
    found.append(str(refused.value))
    with pytest.raises(CapabilityError) as direct:
        SingleStrategy(config, spec=registry.spec("strategy", "single"), registry=registry)
    return [*found, str(direct.value)]


def test_two_ranks_are_refused_before_and_at_construction() -> None:
    for checked, direct in run_spmd(started_on_two, 2):
        assert "a world of 2 ranks needs the capability 'multi_rank', which strategy 'single'" in checked
        assert direct == "strategy 'single' is one process, started on 2 ranks; use --fsdp, or one rank"


def test_accumulate_marks_the_last_micro_batch_and_a_rank_without_any_takes_part(strategy: StrategyBase) -> None:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    strategy.accumulate([], lambda rows: loss_sum(model, rows), model, optimizer)
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and float(g.abs().max()) == 0 for g in gradients)
    result = strategy.optimizer_step(optimizer, model, None)
    assert result.grad_norm == 0.0 and not result.skipped


def test_a_model_that_cannot_fill_up_says_what_is_possible(strategy: StrategyBase) -> None:
    model, optimizer = strategy.prepare_trainable(line(2.0), optimizer=SETTINGS)
    with pytest.raises(ValueError, match=r"fewer micro-batches than another.*bring the same number on every rank"):
        strategy.accumulate([], lambda x: model(x).sum(), model, optimizer)
    seeing, its_optimizer = strategy.prepare_trainable(make_model("qwen2.5-vl"), optimizer=SETTINGS)
    with pytest.raises(ValueError, match=r"reads image, video, text, not text alone.*bring the same number on every rank"):
        strategy.accumulate([], lambda x: seeing(**x).logits.sum(), seeing, its_optimizer)


def test_accumulate_keeps_no_loss_while_it_makes_the_next(strategy: StrategyBase) -> None:
    model, optimizer = strategy.prepare_trainable(line(2.0), optimizer=SETTINGS)
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def loss_share(x: float) -> torch.Tensor:
        alive.append(sum(ref() is not None for ref in made))
        loss = model(torch.tensor([x])).sum()
        made.append(weakref.ref(loss))
        return loss

    strategy.accumulate([1.0, 2.0, 3.0], loss_share, model, optimizer)
    assert alive == [0, 0, 0], "a loss that is kept holds its graph beside the next one's"


def test_it_says_what_the_backend_was_told(strategy: StrategyBase) -> None:
    assert strategy.describe() == {"strategy": "single", "world_size": 1}
