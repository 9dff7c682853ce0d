"""Each phase of a step against its floor: arithmetic over the measured matmul rate, bytes over the measured bandwidth, the bare engine.

`make phases`. The step is that of `vs_trl.py`; the parts of a sync are timed one by one in a process that holds nothing else. They and the
bare engine are of one GPU: with more ranks the step alone is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arms import run_ours
from random_models import SHAPES, workload
from results import keep
from vs_trl import CPU, GPU

from lightrft.testing.spmd import run_spmd

REPEATS = 5


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (GPU if on_gpu else CPU).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="further settings")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args()
    given.work = given.work.absolute()
    own = workload(given.model, given.work, prompt_len=given.prompt_len, new_tokens=given.new_tokens)
    engine = {"engine_type": "vllm", "engine_mem_util": given.mem_util, "bf16": True} if on_gpu else {"engine_type": "hf"}
    rows = given.prompts * given.samples
    settings = {
        **own, **engine, "strategy": "fsdp", "rollout_batch_size": given.prompts, "n_samples_per_prompt": given.samples,
        "train_batch_size": rows, "micro_train_batch_size": given.micro, "micro_rollout_batch_size": given.micro, "num_episodes": 100,
        "max_steps": given.steps, "seed": 0, **{n: json.loads(v) for n, _, v in (word.partition("=") for word in given.set)},
    }  # fmt: skip
    step = run_ours("phases", settings, work=given.work, nproc=given.ranks)
    assert not step["rc"], step.get("log")
    parts = run_spmd(sync_parts, 1, settings, timeout_s=300, cuda=on_gpu)[0] if given.ranks == 1 else {}
    bare = bare_engine(given, own) if on_gpu and given.ranks == 1 else None
    floor = floors(given, bare_s=bare[0] if bare else None)
    print("| phase | s | floor, s | over the floor | |\n|---|---|---|---|---|")
    numbers = {"step_s": step["wall_s"], "ranks": given.ranks, **{f"sync {name} s": value for name, value in parts.items()}}
    numbers |= {"weight_bytes": weight_bytes(given.model), "micro_batches": rows / given.micro / given.ranks}
    numbers |= {"rollout_s": step["time/rollout_s"], "rollout_fixed_s": bare[1] if bare else 0.0}
    for name, (seconds, why) in floor.items():
        found = step[f"time/{name}_s"]
        numbers |= {f"{name}_s": found, f"{name}_over_floor": found / seconds}
        print(f"| {name} | {found:.3f} | {seconds:.4f} | {found / seconds:.2f} | {why} |")
    for name in ("reward", "advantage", "logprob"):
        numbers[f"{name}_s"] = step.get(f"time/{name}_s", 0.0)
        print(f"| {name} | {numbers[f'{name}_s']:.4f} | | | |")
    rest = step["time/step_s"] - sum(v for k, v in step.items() if k.startswith("time/") and k not in ("time/step_s", "time/save_s"))
    numbers["rest_s"] = rest
    print(
        f"| between phases | {rest:.4f} | | | |\n\na step {step['wall_s']:.3f} s"
        + (f"; parts of a sync, s: {json.dumps(parts)}" if parts else "")
    )
    keep(f"phases-{given.model}", numbers, folder=given.work)
    if given.json:
        print(json.dumps({"numbers": numbers, "step": step}))


def arithmetic(model: str) -> tuple[int, int]:
    """Multiplications of a token in all blocks, and in the output layer: their weights, norms left out."""
    shape = SHAPES[model][1]
    hidden, head_dim = shape["hidden_size"], shape["head_dim"]
    attention = hidden * head_dim * (2 * shape["num_attention_heads"] + 2 * shape["num_key_value_heads"])
    return shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"]), hidden * shape["vocab_size"]


def weight_bytes(model: str) -> int:
    """Of all weights, in the dtype that the engine holds."""
    trunk, head = arithmetic(model)
    return (trunk + head * (1 if SHAPES[model][1].get("tie_word_embeddings") else 2)) * (2 if torch.cuda.is_available() else 4)


def floors(given: argparse.Namespace, *, bare_s: float | None) -> dict[str, tuple[float, str]]:
    """Seconds and reason for each phase that has a floor. Attention's square is left out: the floors are below the truth."""
    trunk, head = arithmetic(given.model)
    completions = given.prompts * given.samples * given.new_tokens
    tokens = completions + given.prompts * given.samples * given.prompt_len
    rate, bandwidth = matmul_rate(), copy_rate()
    update = 6 * (trunk * tokens + head * completions) / rate
    tensors = weight_bytes(given.model)
    found = {
        "update": (update, f"{update * rate / 1e12:.0f} TFLOP at {rate / 1e12:.1f} TFLOP/s, measured"),
        "sync": (3 * tensors / bandwidth, f"{tensors / 1e9:.2f} GB read, written, read again, at {bandwidth / 1e12:.2f} TB/s, measured"),
    }  # fmt: skip
    return ({} if bare_s is None else {"rollout": (bare_s, "vLLM alone, the same requests")}) | found


def timed(work: Callable[[], object]) -> float:
    """The median of some runs, in seconds, each to the end of the device's work."""
    seconds = []
    for _ in range(REPEATS + 2):
        settle()
        start = time.perf_counter()
        work()
        settle()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def settle() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rate() -> float:
    """Operations a second of a large product in the dtype that is computed in."""
    size, device, dtype = (8192, "cuda", torch.bfloat16) if torch.cuda.is_available() else (1024, "cpu", torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b)


def copy_rate() -> float:
    """Bytes a second, read and written."""
    source = torch.randn(2**28 if torch.cuda.is_available() else 2**23, device="cuda" if torch.cuda.is_available() else "cpu")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / timed(lambda: target.copy_(source))


def bare_engine(given: argparse.Namespace, own: dict[str, Any]) -> tuple[float, float]:
    """Seconds of vLLM alone for a rollout's requests, in a process of its own; and the part of them that no smaller number of prompts
    shortens, from an eighth of the prompts.
    """
    whole, eighth = run_spmd(_bare, 1, vars(given), own["model_name_or_path"], timeout_s=300, cuda=True)[0]
    return whole, max(0.0, eighth - (whole - eighth) / 7)


def _bare(given: dict[str, Any], model: str) -> tuple[float, float]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    length = given["prompt_len"] + given["new_tokens"]
    llm = LLM(model=model, gpu_memory_utilization=given["mem_util"], max_model_len=length, disable_log_stats=True, seed=0)

    def seconds(number: int) -> float:
        found = []
        for seed in range(4):
            prompts, params = _requests(given, number, seed=seed)
            start = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            found.append(time.perf_counter() - start)
        return statistics.median(found[1:])

    return seconds(given["prompts"]), seconds(max(1, given["prompts"] // 8))


def _requests(given: dict[str, Any], number: int, *, seed: int) -> tuple[list[Any], list[Any]]:
    """As our engine asks: token ids alone, a seed for each request, log-probs of two prompts."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    vocab_size = SHAPES[given["model"]][1]["vocab_size"]
    generator = torch.Generator().manual_seed(seed)
    prompts = [
        {"prompt_token_ids": torch.randint(4, vocab_size, (given["prompt_len"],), generator=generator).tolist()} for _ in range(number)
    ]
    params = [
        SamplingParams(
            n=given["samples"], max_tokens=given["new_tokens"], ignore_eos=True, seed=1000 * seed + i, detokenize=False,
            logprobs=0 if i < 2 else None, flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY,
        )
        for i in range(number)
    ]  # fmt: skip
    return prompts, params


def sync_parts(settings: dict[str, Any]) -> dict[str, float]:
    """Seconds of the parts of a sync, each by itself, of one rank after a backward pass. For `run_spmd`."""
    from lightrft.config.load import make_config
    from lightrft.distributed.memory import release_cached
    from lightrft.models.load import open_causal_lm
    from lightrft.strategy import get_strategy
    from lightrft.strategy.strategy_base import AdamWSettings
    from lightrft.weights.verify import SentChecksums

    config = make_config({**settings, "output_dir": "runs/parts"})
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    opened = open_causal_lm(config.model_name_or_path, dtype=torch.float32)
    actor, optimizer = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-6), weights=opened.weights)
    ids = torch.randint(4, 500, (config.micro_train_batch_size, 64), device=strategy.world.device)
    engine, dtype = strategy.inference_engine, strategy.engine_dtype
    assert engine is not None

    def step() -> None:
        loss = actor(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).mean()
        strategy.accumulate([loss], lambda each: each, actor, optimizer)
        strategy.optimizer_step(optimizer, actor, None)

    def checked() -> None:
        sent = SentChecksums()
        for _ in sent.watch(strategy.export_weights(actor, dtype=dtype)):
            pass
        sent.differing({})

    version = iter(range(10**6))
    parts: dict[str, Callable[[], object]] = {
        "export": lambda: sum(len(bucket) for bucket in strategy.export_weights(actor, dtype=dtype)),
        "export and checksums": checked,
        "export and load": lambda: engine.update_weights(strategy.export_weights(actor, dtype=dtype), version=next(version)),
        "the engine's own checksums": engine.weight_checksums,
        "names and shapes": lambda: strategy._exported_shapes(actor),
    }
    found = {name: round(timed(work), 5) for name, work in parts.items()}
    strategy.update_engine_weights(actor)
    found |= dict.fromkeys(("torch's cache given back", "sleep", "wake weights", "wake cache", "whole, asleep", "whole, awake"), 0.0)
    for _ in range(3):
        strategy.wakeup_inference_engine()
        step()
        found["whole, awake"] = _once(lambda: strategy.update_engine_weights(actor))
        found["sleep"] = _once(strategy.maybe_sleep_inference_engine)
        step()
        found["whole, asleep"] = _once(lambda: strategy.update_engine_weights(actor))
        found["wake cache"] = _once(strategy.wakeup_inference_engine)
        strategy.maybe_sleep_inference_engine()
        step()
        found["torch's cache given back"] = _once(lambda: release_cached(strategy.world.device))
        if torch.cuda.is_available() and config.engine_type == "vllm":
            found["wake weights"] = _once(lambda: engine.wake_up(("weights",)))
            engine.wake_up(("weights", "kv_cache"))
    strategy.shutdown()
    return found


def _once(work: Callable[[], object]) -> float:
    settle()
    start = time.perf_counter()
    work()
    settle()
    return round(time.perf_counter() - start, 5)


if __name__ == "__main__":
    main()
