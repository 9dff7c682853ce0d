"""Bfloat16 parameters with float32 masters learn exactly what float32 parameters learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from lightrft.config.load import make_config
from lightrft.errors import CheckpointError, ConfigError
from lightrft.models.load import open_causal_lm
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, accumulate, full_parameters, largest_difference, train
from lightrft.weights.safetensors_reader import WeightFiles
from lightrft_fsdp import mixed_precision

Optimizer = torch.optim.Optimizer
Tensors = dict[str, torch.Tensor]
MASTERS = {"fsdp": True, "bf16": True, "use_mp_opt": True}


def make(**settings: Any) -> StrategyBase:
    return get_strategy(make_config(settings))


def full(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def state_of(model: torch.nn.Module, optimizer: Optimizer, key: str) -> Tensors:
    return {name: full(optimizer.state[p][key]) for name, p in model.named_parameters()}


def gradients(model: torch.nn.Module) -> Tensors:
    return {name: full(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def rounded(tensors: Tensors) -> Tensors:
    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def same_run(strategy: StrategyBase, *, max_norm: float = 0.5) -> dict[str, Any]:
    """Five clipped steps under a schedule, with a NaN from one rank in the middle."""
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(vocab_size=67), optimizer=SETTINGS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    results, rates = [], []
    for step in range(5):
        strategy.maybe_load_optimizer(optimizer)
        results += train(strategy, model, optimizer, first=step, last=step + 1, scheduler=scheduler, max_norm=max_norm)
        rates.append(scheduler.get_last_lr()[0])
        strategy.maybe_offload_optimizer(optimizer)
        if step == 2:
            strategy.maybe_load_optimizer(optimizer)
            loss = model(input_ids=torch.arange(8)[None]).logits.sum()
            sick = float("nan") if strategy.world.rank == strategy.world.world_size - 1 else 1.0
            strategy.backward(loss * sick, model, optimizer)
            results.append(strategy.optimizer_step(optimizer, model, scheduler, "actor", max_norm=max_norm))
    strategy.maybe_load_optimizer(optimizer)
    masters = state_of(model, optimizer, "master") if "master" in next(iter(optimizer.state.values())) else full_parameters(strategy, model)
    return {
        "masters": masters,
        "moments": state_of(model, optimizer, "exp_avg_sq"),
        "parameters": full_parameters(strategy, model),
        "norms": [r.grad_norm for r in results if not r.skipped],
        "skipped": [r.skipped for r in results],
        "rates": rates,
        "state dtypes": {v.dtype for state in optimizer.state.values() for v in state.values()},
    }


def far_below_an_ulp(strategy: StrategyBase, *, steps: int = 50) -> tuple[float, float]:
    """The largest and the smallest move of a weight of 1 under `steps` steps of 1e-5; bfloat16 has 2^-7 between 1 and the next."""
    model = tiny_causal_lm()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    model, optimizer = strategy.prepare_trainable(model, optimizer=AdamWSettings(learning_rate=1e-5, eps=0.0))
    gradient_dtype = torch.float32 if isinstance(optimizer, mixed_precision.MixedPrecisionAdamW) else None
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter, dtype=gradient_dtype)
        strategy.optimizer_step(optimizer, model, None, max_norm=0.0)
    held = state_of(model, optimizer, "master") if isinstance(optimizer, mixed_precision.MixedPrecisionAdamW) else {}
    moved = [1 - tensor.float() for tensor in (held or full_parameters(strategy, model)).values()]
    return max(float(m.max()) for m in moved), min(float(m.min()) for m in moved)


def measure() -> dict[str, Any]:
    masters = make(**MASTERS)
    out: dict[str, Any] = {"masters": same_run(masters), "float32 parameters": same_run(make(fsdp=True, bf16=True))}
    out["offloaded"] = same_run(make(**MASTERS, fsdp_cpu_offload=True))
    model, optimizer = masters.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    out["dtypes"] = {p.dtype for p in model.parameters()}, {b.dtype for b in model.buffers()}
    out["start"] = state_of(model, optimizer, "master")
    accumulate(masters, model, optimizer, 1, always_final=True)
    out["gradients"] = gradients(model)
    plain = make(fsdp=True, bf16=True)
    model, optimizer = plain.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    accumulate(plain, model, optimizer, 1, always_final=True)
    out["expected gradients"] = gradients(model)
    with mock.patch.object(mixed_precision, "keep_float32"):
        model, optimizer = masters.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    accumulate(masters, model, optimizer, 1, always_final=True)
    out["gradients of FSDP2"] = gradients(model)
    return out


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_spmd(measure, request.param)


def test_parameters_are_bfloat16_and_masters_start_from_what_was_never_rounded(ranks: list[dict[str, Any]]) -> None:
    expected = dict(tiny_causal_lm().named_parameters())
    for rank in ranks:
        assert rank["dtypes"] == ({torch.bfloat16}, {torch.float32})  # rotary frequencies stay
        assert largest_difference(rank["start"], expected) == 0
        assert largest_difference(rank["start"], {n: t.float() for n, t in rounded(rank["start"]).items()}) > 1e-5


def test_it_is_the_run_of_float32_parameters_bit_by_bit(ranks: list[dict[str, Any]]) -> None:
    """Clipped, under a schedule, past a step that is skipped."""
    for rank in ranks:
        found, expected = rank["masters"], rank["float32 parameters"]
        for key in ("masters", "moments"):
            assert largest_difference(found[key], expected[key]) == 0, key
        assert found["norms"] == expected["norms"] and all(norm > 0.5 for norm in found["norms"])
        assert found["skipped"] == expected["skipped"] == [False] * 3 + [True] + [False] * 2
        assert found["rates"] == pytest.approx([1e-3 / (2 + step) for step in range(5)])
        assert found["state dtypes"] == {torch.float32}
        assert found["parameters"].keys() == found["masters"].keys()
        assert all(torch.equal(found["parameters"][n], t) for n, t in rounded(found["masters"]).items())


def test_offloading_changes_no_bit(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for key in ("masters", "moments", "parameters"):
            assert largest_difference(rank["offloaded"][key], rank["masters"][key]) == 0


def test_gradients_are_those_that_were_reduced(ranks: list[dict[str, Any]]) -> None:
    """Of three reductions in one step. Without our hooks FSDP2 rounds each of them, and their sums, to bfloat16."""
    for rank in ranks:
        expected, fsdp2 = rank["expected gradients"], rank["gradients of FSDP2"]
        assert {t.dtype for t in rank["gradients"].values()} == {torch.float32}
        assert {t.dtype for t in fsdp2.values()} == {torch.bfloat16}
        assert largest_difference(rank["gradients"], expected) == 0
        assert 2**-10 < largest_difference(fsdp2, expected, relative=True) < 2**-6


def one_process() -> Tensors:
    strategy = make(strategy="single")
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    train(strategy, model, optimizer, max_norm=0.5)
    return full_parameters(strategy, model)


def five_steps() -> Tensors:
    strategy = make(**MASTERS)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    train(strategy, model, optimizer, max_norm=0.5)
    return state_of(model, optimizer, "master")


@pytest.fixture(scope="module")
def oracle() -> Tensors:
    return run_spmd(one_process, 1)[0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_masters_stay_near_those_of_one_process_in_float32(oracle: Tensors, world_size: int) -> None:
    """bfloat16 gradients: measured 4.2e-3 of moves up to 5.0e-3 (tiny gradients, which AdamW divides by themselves); cosine 0.998."""
    start = dict(tiny_causal_lm().named_parameters())
    for found in run_spmd(five_steps, world_size):
        assert largest_difference(found, oracle) < 6e-3
        moved = {name: found[name] - start[name] for name in found}
        expected = {name: oracle[name] - start[name] for name in found}
        assert all(torch.cosine_similarity(moved[n].flatten(), expected[n].flatten(), dim=0) > 0.995 for n in moved)


def rounded_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    model._apply(lambda tensor: tensor.to(torch.bfloat16) if isinstance(tensor, DTensor) else tensor)
    return list(model.parameters())


def small_updates() -> dict[str, tuple[float, float]]:
    found = {"with": far_below_an_ulp(make(**MASTERS))}

    def without(settings: AdamWSettings, model: torch.nn.Module, *, foreach: bool) -> Optimizer:
        return torch.optim.AdamW(rounded_parameters(model), lr=settings.learning_rate, eps=settings.eps, weight_decay=0.0)

    with mock.patch.object(AdamWSettings, "over", without):
        found["without"] = far_below_an_ulp(make(fsdp=True, bf16=True))
    return found


def test_fifty_updates_far_below_an_ulp_add_up_on_masters_and_vanish_without() -> None:
    """By hand: the gradient is always 1, so AdamW moves by the learning rate each time, 50 x 1e-5."""
    for found in run_spmd(small_updates, 2):
        assert found["with"] == (pytest.approx(5e-4, rel=2e-3), pytest.approx(5e-4, rel=2e-3))  # 1e-5 is 168 steps of float32 at 1
        assert found["without"] == (0.0, 0.0)


def from_files(folder: Path) -> dict[str, Any]:
    strategy = make(**MASTERS)
    opened = open_causal_lm(folder, dtype=torch.float32)
    assert all(p.is_meta for p in opened.model.parameters())
    model, optimizer = strategy.prepare_trainable(opened.model, optimizer=SETTINGS, weights=WeightFiles(folder))
    return {"masters": state_of(model, optimizer, "master"), "parameters": full_parameters(strategy, model)}


def test_masters_read_from_files_are_not_rounded(tmp_path: Path) -> None:
    source = tiny_causal_lm(seed=2, vocab_size=67, tie=True)
    source.save_pretrained(tmp_path)
    for rank in run_spmd(from_files, 4, tmp_path):
        assert largest_difference(rank["masters"], dict(source.named_parameters())) == 0
        assert all(torch.equal(rank["parameters"][n], t) for n, t in rounded(rank["masters"]).items())


def everything(strategy: StrategyBase, model: torch.nn.Module, optimizer: Optimizer) -> Tensors:
    strategy.maybe_load_optimizer(optimizer)
    found = full_parameters(strategy, model)
    keys = next(iter(optimizer.state.values())).keys()
    return found | {f"{key} of {name}": t for key in keys for name, t in state_of(model, optimizer, key).items()}


def saved(folder: Path) -> Tensors:
    strategy = make(**MASTERS, fsdp_cpu_offload=True)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(vocab_size=67), optimizer=SETTINGS)
    strategy.save_ckpt(folder / "start", model=model, optimizer=optimizer)
    train(strategy, model, optimizer, last=2)
    strategy.maybe_offload_optimizer(optimizer)
    strategy.save_ckpt(folder / "two", model=model, optimizer=optimizer)
    strategy.save_model(model, folder / "model")
    other = make(fsdp=True, bf16=True)
    plain, plain_optimizer = other.prepare_trainable(tiny_causal_lm(vocab_size=67), optimizer=SETTINGS)
    other.save_ckpt(folder / "plain", model=plain, optimizer=plain_optimizer)
    return everything(strategy, model, optimizer)


def loaded(folder: Path) -> dict[str, Any]:
    strategy = make(**MASTERS)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(seed=5, vocab_size=67), optimizer=SETTINGS)
    train(strategy, model, optimizer, first=7, last=8)
    refused = []
    with pytest.raises(CheckpointError) as caught:
        strategy.load_ckpt(folder / "plain", model=model, optimizer=optimizer)
    refused.append(str(caught.value))
    other = make(fsdp=True, bf16=True)
    plain, plain_optimizer = other.prepare_trainable(tiny_causal_lm(vocab_size=67), optimizer=SETTINGS)
    with pytest.raises(CheckpointError) as caught:
        other.load_ckpt(folder / "two", model=plain, optimizer=plain_optimizer)
    refused.append(str(caught.value))
    strategy.load_ckpt(folder / "two", model=model, optimizer=optimizer)
    at_two = everything(strategy, model, optimizer)
    strategy.load_ckpt(folder / "start", model=model, optimizer=optimizer)
    train(strategy, model, optimizer, last=2)
    return {"at two": at_two, "again": everything(strategy, model, optimizer), "refused": refused}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    folder = tmp_path_factory.mktemp("masters")
    return folder, run_spmd(saved, 2, folder)[0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_checkpoint_is_read_bitwise_on_any_number_of_ranks(checkpoint: tuple[Path, Tensors], world_size: int) -> None:
    folder, expected = checkpoint
    for rank in run_spmd(loaded, world_size, folder):
        assert len(expected) > 100 and {t.dtype for t in expected.values()} == {torch.float32, torch.bfloat16}
        assert all(rank["at two"][name].dtype is tensor.dtype for name, tensor in expected.items())
        assert largest_difference(rank["at two"], expected) == 0
        if world_size == 2:
            assert largest_difference(rank["again"], expected) == 0
        assert "plain' was saved without use_mp_opt (model.embed_tokens.weight is torch.float32), this run is with it" in rank["refused"][0]
        assert "two' was saved with use_mp_opt (model.embed_tokens.weight is torch.bfloat16), this run is without it" in rank["refused"][1]


def test_the_model_folder_holds_what_computed_in_bfloat16(checkpoint: tuple[Path, Tensors]) -> None:
    folder, expected = checkpoint
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())


def test_without_bf16_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="use_mp_opt=True needs bf16, found bf16=False; set --bf16"):
        make(fsdp=True, use_mp_opt=True)
