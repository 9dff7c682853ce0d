"""Adapters alone train, the same on every backend; engine, model folder and adapter folder get what they are worth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from small_run import MAIN, quiet_environment, write_recipe
from transformers import AutoModelForCausalLM

from lightrft.config.load import make_config
from lightrft.models.load import load_causal_lm, open_causal_lm
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.parity import _own
from lightrft.testing.tiny import tiny_causal_lm, tiny_lora, tiny_tokenizer
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train
from lightrft.weights.lora_merge import is_adapter
from lightrft.weights.safetensors_reader import WeightFiles

BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True},
    "fsdp, bf16, use_mp_opt": {"fsdp": True, "bf16": True, "use_mp_opt": True},
    **{f"zero {stage}": {"zero_stage": stage} for stage in range(4)},
    "zero 3, bf16": {"zero_stage": 3, "bf16": True},
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
Tensors = dict[str, torch.Tensor]


class Watched(WeightFiles):
    """Counts the elements that this rank reads from the files and takes from memory."""

    elements = 0

    def rows(self, names: Any, first: int, last: int) -> torch.Tensor:
        found = super().rows(names, first, last)
        self.elements += found.numel()
        return found


def tuned(settings: dict[str, Any], base: str, out: str, sparse: bool) -> dict[str, Any]:
    """Three steps; `sparse`: the base model comes without values."""
    sizes = {"micro_rollout_batch_size": 2, "prompt_max_len": 64, "generate_max_len": 64}
    strategy = get_strategy(make_config({**settings, **sizes, "engine_type": "hf", "model_name_or_path": base}))
    watched = Watched(base)
    source = open_causal_lm(base, dtype=torch.float32).model if sparse else load_causal_lm(base, dtype=torch.float32)
    model, optimizer = strategy.prepare_trainable(tiny_lora(source), optimizer=SETTINGS, weights=watched if sparse else None)
    train(strategy, model, optimizer, last=3)
    strategy.save_model(model, Path(out) / "model", tokenizer=tiny_tokenizer())
    strategy.save_adapter(model, Path(out) / "adapter")
    strategy.setup_inference_engine(strategy.config, engine_type="hf")
    strategy.update_engine_weights(model)
    engine = strategy.inference_engine
    assert engine is not None
    logits = model(input_ids=IDS).logits.detach()
    found = {
        "own": _own(strategy, model),
        "merged": full_parameters(strategy, model),
        "engine": {name: p.clone() for name, p in engine.model.named_parameters()},
        "gap": float((engine.model(input_ids=IDS).logits - logits).abs().max()),
        "moments": sum(len(state) for state in optimizer.state.values()),
        "read": watched.elements,
    }
    strategy.shutdown_inference_engine()
    return found | {"alone": given_adapters_alone(strategy, model, optimizer)}


def given_adapters_alone(strategy: Any, model: Any, optimizer: Any) -> dict[str, float]:
    """Three more steps, with an engine that keeps the base weights: the largest gap after a sync, and the bytes of the last."""
    alone = strategy.config.model_copy(update={"lora_rank": 4, "lora_sync": "adapters"})
    strategy.setup_inference_engine(alone, engine_type="hf")
    gaps = []
    for step in (3, 4, 5):
        train(strategy, model, optimizer, first=step, last=step + 1)
        strategy.update_engine_weights(model)
        logits = model(input_ids=IDS).logits.detach()
        gaps.append(float((strategy.inference_engine.model(input_ids=IDS).logits - logits).abs().max()))
        assert strategy.differing_engine_weights(model) == [] and strategy.unverified_weights == []
    return {"gap": max(gaps), "bytes": strategy.synced_bytes}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_causal_lm(seed=2, vocab_size=67, tie=True).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Any]:
    """What the strategy `single` makes of it."""
    return run_spmd(tuned, 1, {"strategy": "single"}, str(base), str(tmp_path_factory.mktemp("oracle")), False)[0]


ONE_RANK_DAILY = ("fsdp", "zero 3")
CASES = [
    pytest.param(name, size, marks=[] if size == 2 or name in ONE_RANK_DAILY else pytest.mark.long) for name in BACKENDS for size in (1, 2)
]


@pytest.mark.parametrize(("backend", "world_size"), CASES)
def test_adapters_train_alone_and_everything_that_leaves_is_merged(
    tmp_path: Path, base: Path, oracle: dict[str, Any], backend: str, world_size: int
) -> None:
    exact = "bf16" not in backend
    ranks = run_spmd(tuned, world_size, BACKENDS[backend], str(base), str(tmp_path), True, timeout_s=300)
    start = dict(tiny_lora(load_causal_lm(base, dtype=torch.float32)).named_parameters())
    for rank in ranks:
        own: Tensors = rank["own"]
        assert own.keys() == start.keys()
        still = {name: tensor for name, tensor in own.items() if not is_adapter(name)}
        frozen = {name: start[name].detach() for name in still}
        assert largest_difference(still, frozen) == 0.0 if exact else largest_difference(still, frozen) < 1e-2  # held in bfloat16
        assert all(not torch.equal(own[name], start[name]) for name in own.keys() - still.keys())
        assert largest_difference(own, oracle["own"]) < (3e-5 if exact else 6e-3)
        assert largest_difference(rank["merged"], oracle["merged"]) < (3e-5 if exact else 2e-2)
        if exact:
            assert largest_difference(rank["engine"], rank["merged"]) == 0.0 and rank["gap"] < 1e-5
        assert rank["alone"]["gap"] < (1e-5 if exact else 2e-2)
        assert rank["alone"]["bytes"] == sum(p.numel() for name, p in start.items() if is_adapter(name)) * (4 if exact else 2)
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(tmp_path / "adapter"))
        adapters = {name: p for name, p in loaded.named_parameters() if is_adapter(name)}
        assert largest_difference(adapters, {name: own[name].float() for name in adapters}) == 0.0
        by_peft = dict(loaded.merge_and_unload().named_parameters())
        saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).named_parameters())
        assert largest_difference(saved, by_peft) < (1e-6 if exact else 1e-2)
    if backend in ("fsdp", "zero 3"):
        total = sum(p.numel() for p in start.values())
        assert sum(rank["read"] for rank in ranks) < 1.1 * total  # rows that two ranks share are read by both


def resumed(settings: dict[str, Any], folder: str) -> tuple[float, float]:
    """How far a loaded run is from the one that went on, and from the one that was saved."""
    strategy = get_strategy(make_config(settings))
    model, optimizer = strategy.prepare_trainable(tiny_lora(tiny_causal_lm()), optimizer=SETTINGS)
    train(strategy, model, optimizer, last=1)
    strategy.save_ckpt(Path(folder) / "ckpt", model=model, optimizer=optimizer)
    saved = _own(strategy, model)
    train(strategy, model, optimizer, first=1, last=2)
    other, other_optimizer = strategy.prepare_trainable(tiny_lora(tiny_causal_lm(seed=4), seed=9), optimizer=SETTINGS)
    strategy.load_ckpt(Path(folder) / "ckpt", model=other, optimizer=other_optimizer)
    back = largest_difference(_own(strategy, other), saved)
    train(strategy, other, other_optimizer, first=1, last=2)
    return largest_difference(_own(strategy, other), _own(strategy, model)), back


@pytest.mark.parametrize("backend", ["fsdp", "zero 2", "zero 3"])
def test_a_checkpoint_holds_adapters_and_their_moments(tmp_path: Path, backend: str) -> None:
    for far, back in run_spmd(resumed, 2, BACKENDS[backend], str(tmp_path)):
        assert back == 0.0 and far == 0.0


def test_a_run_ends_without_a_gap_and_writes_both_folders(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, lora_rank=4, kl_coef=0.1, logprob_gap_action="stop", logprob_gap_threshold=1e-5)
    command = [sys.executable, "-m", MAIN, "train", "--config", str(recipe), "--nproc-per-node", "2"]
    done = subprocess.run(command, env=quiet_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name for file in (tmp_path / "run/adapter").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    PeftModel.from_pretrained(load_causal_lm(tmp_path / "model", dtype=torch.float32), str(tmp_path / "run/adapter"))
    load_causal_lm(tmp_path / "run/model", dtype=torch.float32)
