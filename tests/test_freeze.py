"""`freeze`: what matches stays bit for bit, the rest is trained as in one process, on every backend; a resumed run is the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightrft.config.load import make_config
from lightrft.errors import CheckpointError
from lightrft.testing import run_spmd
from lightrft.testing.parity import BOUND, Case, Measured, farthest, measure
from lightrft.testing.tiny import tiny_causal_lm, tiny_lora, tiny_model_folder
from lightrft.trainer.resume import check_resume
from lightrft.trainer.run import train

CASES = (
    Case("layer", 3, max_norm=0.5, empty_rank=True, freeze=r"layers\.0\."),
    Case("tied head", 3, max_norm=0.5, tie=True, freeze="lm_head"),
    Case("adapters", 3, max_norm=0.5, lora=True, freeze=r"layers\.0\."),
)
FROZEN = {"layer": "layers.0.", "tied head": "embed_tokens", "adapters": "layers.0."}
EXACT: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True},
    "fsdp, kept": {"fsdp": True, "fsdp_reshard_after_forward": False, "gradient_checkpointing": True},
    **{f"zero {stage}": {"zero_stage": stage} for stage in range(4)},
}
BF16: dict[str, dict[str, Any]] = {
    "fsdp, bf16": {"fsdp": True, "bf16": True},
    "fsdp, use_mp_opt": {"fsdp": True, "bf16": True, "use_mp_opt": True},
    "zero 2, bf16": {"zero_stage": 2, "bf16": True},
    "zero 3, bf16": {"zero_stage": 3, "bf16": True},
}
IN_FLOAT32 = "fsdp, bf16"
"""The one of them that holds frozen parameters in float32."""


def start(case: Case) -> dict[str, torch.Tensor]:
    """The values that `measure` begins with."""
    model: torch.nn.Module = tiny_causal_lm(seed=0, tie=case.tie)
    model = tiny_lora(model) if case.lora else model
    return {f"actor/{name}": p.detach() for name, p in model.named_parameters()}


def is_frozen(case: Case, name: str) -> bool:
    """By hand: also the base of a model with adapters."""
    return FROZEN[case.name] in name or (case.lora and ".lora_" not in name)


@pytest.fixture(scope="module")
def oracle() -> dict[str, Measured]:
    return run_spmd(measure, 1, {"single": ({"strategy": "single"}, CASES)})[0]["single"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_process_leaves_what_matches_and_trains_the_rest(oracle: dict[str, Measured], case: Case) -> None:
    begin, found = start(case), oracle[case.name]
    assert found.parameters.keys() == begin.keys() and found.gradients.keys() == {n for n in begin if not is_frozen(case, n)}
    for name, tensor in found.parameters.items():
        assert torch.equal(tensor, begin[name]) == is_frozen(case, name), name


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.long), 2])
def test_every_backend_trains_the_same_and_leaves_the_same(oracle: dict[str, Measured], world_size: int) -> None:
    backends = {name: (settings, CASES) for name, settings in (EXACT | BF16).items()}
    ranks = run_spmd(measure, world_size, backends, timeout_s=500)
    for backend in backends:
        for case in CASES:
            begin, found = start(case), [rank[backend][case.name] for rank in ranks]
            if backend in EXACT:
                assert farthest(found, oracle[case.name]).within(BOUND), (backend, case.name)
            rounded = backend in BF16 and backend != IN_FLOAT32
            for name, tensor in found[0].parameters.items():
                expected = begin[name].bfloat16().float() if rounded else begin[name]
                assert torch.equal(tensor.float(), expected) == is_frozen(case, name), (backend, case.name, name)


def run(folder: Path, name: str, **changes: Any) -> None:
    """One run in `folder/name`: 2 steps, a checkpoint of each."""
    train(make_config({
        "engine_type": "hf", "loggers": ["jsonl"], "plot_every": 0, "max_steps": 2, "num_episodes": 9, "seed": 3, "keep_checkpoints": 0,
        "model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "data.jsonl"),
        "prompt_max_len": 16, "generate_max_len": 8, "rollout_batch_size": 4, "n_samples_per_prompt": 4, "save_every": 1,
        "train_batch_size": 16, "micro_train_batch_size": 4, "learning_rate": 1e-2, "ema_beta": 0.5, "freeze": "embed|layers.1.mlp",
        "output_dir": str(folder / name), "reward": [f"{folder}/reward.py:digits"], **changes,
    }))  # fmt: skip


def runs(where: str) -> None:
    for name, backend in (("fsdp", {"fsdp": True}), ("zero 2", {"zero_stage": 2})):
        run(Path(where), name, **backend)
        run(Path(where), f"{name} resumed", **backend, resume_from=str(Path(where) / name / "checkpoints" / "step-1"))


def test_a_run_saves_what_is_frozen_as_it_was_and_goes_on_as_the_same_run(tmp_path: Path) -> None:
    tiny_model_folder(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"prompt": f"{i} + {i} =", "answer": str(2 * i)}) + "\n" for i in range(8)))
    (tmp_path / "reward.py").write_text("def digits(samples):\n    return [float(len(s.completion) % 3) for s in samples]\n")
    run_spmd(runs, 2, str(tmp_path), timeout_s=300)
    before = load_file(tmp_path / "model" / "model.safetensors")
    frozen = {name for name in before if "embed" in name or "layers.1.mlp" in name}
    assert 1 < len(frozen) < len(before)
    for name in ("fsdp", "zero 2"):
        for kind in ("model", "ema_model"):
            after = load_file(tmp_path / name / kind / "model.safetensors")
            assert after.keys() == before.keys()
            assert {key for key in after if torch.equal(after[key], before[key])} == frozen
            again = load_file(tmp_path / f"{name} resumed" / kind / "model.safetensors")
            assert all(torch.equal(again[key], after[key]) for key in after)
    config = make_config({"fsdp": True, "freeze": "embed", "resume_from": "latest", "output_dir": str(tmp_path / "fsdp")})
    with pytest.raises(CheckpointError, match=r"saved with .*freeze='embed\|layers.1.mlp', here 'embed'"):
        check_resume(config)
