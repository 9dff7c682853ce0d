"""vLLM holds the actor after every sync, on real ranks, beside each backend and in groups of one and two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.load import make_config
from lightrft.errors import EngineError
from lightrft.strategy import get_strategy
from lightrft.testing.engine_scenario import ScenarioResult, scenario
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_model_folder

TIMEOUT_S = 240.0
FSDP: dict[str, Any] = {"strategy": "fsdp"}
ZERO_2: dict[str, Any] = {"strategy": "deepspeed", "zero_stage": 2}
LENGTHS = {"prompt_max_len": 32, "generate_max_len": 8}
ZERO_3: dict[str, Any] = {"strategy": "deepspeed", "zero_stage": 3}


def run(folder: Path, world: int, **settings: Any) -> list[ScenarioResult]:
    tiny_model_folder(folder, tie=True, kv_heads=2)
    return run_spmd(scenario, world, str(folder), {"engine_type": "vllm"} | settings, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    ("world", "tp", "backend"),
    [(1, 1, {"strategy": "single"}), (2, 1, ZERO_3), (2, 2, ZERO_2), (4, 2, FSDP)],
    ids=["single", "zero3-tp1", "zero2-tp2", "4-ranks-fsdp-tp2"],
)
def test_it_samples_from_the_actor_after_every_sync(tmp_path: Path, world: int, tp: int, backend: dict[str, Any]) -> None:
    found = run(tmp_path / "model", world, engine_tp_size=tp, **backend)
    assert [f.wrong for f in found] == [[]] * world
    assert max(f.logprob_error for f in found) < 1e-5
    assert [f.version for f in found] == [2] * world
    assert all(f.group_works_after for f in found)


def with_another_seed(folder: str) -> str:
    """What a rank is told when rank 1 draws with seeds of its own. For `run_spmd`."""
    config = make_config({**FSDP, "engine_type": "vllm", "engine_tp_size": 2, "model_name_or_path": folder, **LENGTHS})
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    engine: Any = strategy.inference_engine
    if strategy.world.rank == 1:
        own = engine.generate
        engine.generate = lambda requests, sampling: own([replace(r, seed=r.seed + 1) for r in requests], sampling)
    sampling = {"n": 4, "max_new_tokens": 8, "ignore_eos": True}
    with pytest.raises(EngineError) as caught:
        strategy.gather_and_generate(sampling, all_prompt_token_ids=[[5, 6, 7]])
    strategy.shutdown()
    return str(caught.value)


def test_a_rank_of_a_group_with_another_seed_is_named_on_all_ranks(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model", kv_heads=2)
    for told in run_spmd(with_another_seed, 2, str(folder), timeout_s=TIMEOUT_S):
        assert "ranks [1] of the engine group (0, 1) sampled other tokens than its first rank" in told
