"""The update of every backend is that of `single` on GPUs too, with compiled blocks: on one rank and on two, in float32 and in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightrft.testing import run_spmd
from lightrft.testing.parity import BOUND, CASES, Distance, Measured, farthest, measure

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FEW = tuple(case for case in CASES if case.name in ("accumulation 3", "LoRA", "actor and critic"))
BF16 = Distance(gradients=3e-2, norms=1e-2, parameters=6e-3)
BACKENDS: dict[str, dict[str, Any]] = {
    "single, compiled": {"strategy": "single", "compile": "yes"},
    "fsdp": {"fsdp": True},
    "fsdp, not compiled": {"fsdp": True, "compile": "no"},
    "fsdp, recomputed": {"fsdp": True, "gradient_checkpointing": True},
    "fsdp, bf16, recomputed": {"fsdp": True, "bf16": True, "gradient_checkpointing": True},
    "fsdp, optimizer offload": {"fsdp": True, "fsdp_cpu_offload": True},
    "fsdp, bf16": {"fsdp": True, "bf16": True},
    "fsdp, bf16, use_mp_opt, offload": {"fsdp": True, "bf16": True, "use_mp_opt": True, "fsdp_cpu_offload": True},
    **{f"zero {stage}": {"strategy": "deepspeed", "zero_stage": stage} for stage in range(4)},
    **{f"zero {stage}, bf16": {"strategy": "deepspeed", "zero_stage": stage, "bf16": True} for stage in (1, 2, 3)},
    "zero 2, Adam in host memory": {"strategy": "deepspeed", "zero_stage": 2, "adam_offload": True},
}


@pytest.fixture(scope="module")
def oracle() -> dict[str, Measured]:
    return run_spmd(measure, 1, {"single": ({"strategy": "single", "compile": "no"}, FEW)}, cuda=True)[0]["single"]


@pytest.mark.parametrize("num_gpus", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_gpus(oracle: dict[str, Measured], backend: str, num_gpus: int) -> None:
    if torch.cuda.device_count() < num_gpus:
        pytest.skip(f"this machine has {torch.cuda.device_count()} GPU")
    ranks = run_spmd(measure, num_gpus, {backend: (BACKENDS[backend], FEW)}, cuda=True, timeout_s=300)
    bound = BF16 if "bf16" in backend else BOUND
    for case in FEW:
        far = farthest([rank[backend][case.name] for rank in ranks], oracle[case.name])
        print(f"{backend}, {num_gpus} GPU, {case.name}: {far}")
        assert far.within(bound), (case.name, far)
