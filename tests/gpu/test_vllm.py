"""vLLM on a GPU holds the actor through sleep, sync and wake. Prints the times, and the memory of each state, for the docs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.diagnostics.sync_probe import SyncProbe
from lightrft.models.load import load_tokenizer, open_causal_lm
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_model_folder
from lightrft.types import EngineStatus

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here; `make gpu-vllm` packs it"),
]

PROMPT_LEN, NEW_TOKENS, NUM_PROMPTS = 150, 64, 64
VOCAB_SIZE = 8192


def used_gib() -> float:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def timed(work: Any) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


class Numbers(dict[str, float]):
    """Prints each as it comes, so that a rank that hangs says how far it got."""

    def __setitem__(self, name: str, value: float) -> None:
        super().__setitem__(name, value)
        print(f"{name} {value:.4g}", flush=True)


def train_a_step(strategy: StrategyBase, actor: Any, optimizer: Any) -> None:
    ids = torch.tensor([[3, 4, 5, 6]], device="cuda")
    strategy.accumulate([ids], lambda batch: actor(input_ids=batch).logits.float().logsumexp(-1).sum() / 8, actor, optimizer)
    assert not strategy.optimizer_step(optimizer, actor, None, name="actor").skipped


def states(folder: str, strategy_name: str, level: int, tp_size: int) -> dict[str, float]:
    config = make_config(
        {
            "strategy": strategy_name, "engine_type": "vllm", "engine_sleep_level": level, "engine_mem_util": 0.3, "prompt_max_len": 256,
            "generate_max_len": 256, "model_name_or_path": folder, "bf16": strategy_name != "single", "engine_tp_size": tp_size,
        }
    )  # fmt: skip
    strategy = get_strategy(config)
    found = Numbers()
    found["GiB before"] = used_gib()
    found["s start"] = timed(lambda: strategy.setup_inference_engine(config))
    opened = open_causal_lm(folder, dtype=torch.float32)
    actor, optimizer = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, VOCAB_SIZE, (NUM_PROMPTS, PROMPT_LEN), generator=generator).tolist()
    probe = SyncProbe(strategy=strategy, actor=actor, config=config, prompts=drawn, tokenizer=load_tokenizer(folder))
    found["probe gap at start"] = probe.after_sync()["verify/gap"]
    found["GiB awake"] = used_gib()
    for _ in range(3):
        train_a_step(strategy, actor, optimizer)
        strategy.wakeup_inference_engine()
        found["s sleep"] = timed(strategy.maybe_sleep_inference_engine)
        assert strategy.inference_engine_status is EngineStatus.ASLEEP
        found["GiB asleep"] = used_gib()
        found["s sync (with waking the weights)"] = timed(lambda: strategy.update_engine_weights(actor))
        assert strategy.inference_engine_status is EngineStatus.WEIGHTS_ONLY
        found["GiB weights only"] = used_gib()
        found["s wake the cache"] = timed(strategy.wakeup_inference_engine)
        found["s sync awake"] = timed(lambda: strategy.update_engine_weights(actor))
        gap = probe.after_sync()
        found["probe gap"], found["probe gap max"] = gap["verify/gap"], gap["verify/gap_max"]
    request = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True, "n": 4}
    seconds = timed(lambda: strategy.gather_and_generate(request, all_prompt_token_ids=drawn, sleep_engine=False))
    found["tokens/s"] = NUM_PROMPTS * 4 * NEW_TOKENS / seconds
    found["million parameters"] = sum(p.numel() for p in opened.model.parameters()) / 1e6
    strategy.shutdown()
    return dict(found)


@pytest.mark.parametrize(
    ("strategy", "level", "num_gpus", "tp_size"),
    [
        ("single", 1, 1, 1),
        ("fsdp", 1, 1, 1),
        ("fsdp", 2, 1, 1),
        ("fsdp", 1, 2, 1),
        ("fsdp", 2, 2, 2),
        ("deepspeed", 1, 2, 2),
        ("fsdp", 1, 4, 4),
        ("fsdp", 2, 4, 2),
        ("deepspeed", 2, 4, 4),
    ],
)
def test_it_holds_the_actor_through_sleep_sync_and_wake(tmp_path: Path, strategy: str, level: int, num_gpus: int, tp_size: int) -> None:
    if torch.cuda.device_count() < num_gpus:
        pytest.skip(f"this machine has {torch.cuda.device_count()} GPU")
    folder = tiny_model_folder(tmp_path, vocab_size=VOCAB_SIZE, layers=8, hidden=1024, heads=32, kv_heads=8, tie=True)
    name = f"vLLM beside {strategy}, sleep level {level}, {num_gpus} GPU, tp {tp_size}"
    for found in run_spmd(states, num_gpus, str(folder), strategy, level, tp_size, timeout_s=180, cuda=True):
        print(f"\n{name}: " + ", ".join(f"{what} {value:.4g}" for what, value in found.items()))
        assert found["GiB asleep"] < found["GiB awake"] - 10, "the KV cache, 0.3 of 80 GiB, is given back"
        assert found["GiB weights only"] < found["GiB awake"] - 10


def test_the_demo_rises_with_vllm(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lightrft.cli.main",
        "demo",
        "--nproc-per-node",
        "1",
        "--engine_type",
        "vllm",
        "--engine_mem_util",
        "0.2",
    ]
    command += ["--max_steps", "60", "--json", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result))
    assert result["engine"] == "vllm" and result["accuracy_after"] > result["accuracy_before"] + 0.2
