"""The update and the log-prob pass without an engine: arithmetic a second against the measured matmul rate, and what takes the time.

Packed sequences of a fixed prompt and answers of fixed or geometric lengths; a model of a real shape with random weights; a GPU for each
rank, or CPU ranks. With `--profile` one more update runs under torch's profiler: how much of its time the device is busy, the kernels that
take most of it, and the host's operations that take most of theirs (of rank 0). `make passes`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from phases import arithmetic, matmul_rate
from random_models import SHAPES
from results import keep
from transformers import Qwen3Config, Qwen3ForCausalLM

from lightrft.batch.stages import Trainable
from lightrft.config.load import make_config
from lightrft.experience.scoring import score_logprobs
from lightrft.observe.compiler import graphs_made
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.batches import batch_of
from lightrft.testing.spmd import run_spmd
from lightrft.trainer.rows import ready_for_rows
from lightrft.trainer.update import PolicyUpdate

TOP = 12


def main() -> None:
    given = arguments()
    found = run_spmd(measure, given.ranks, vars(given), timeout_s=given.limit, cuda=torch.cuda.is_available())[0]
    for line in found.pop("told"):
        print(line)
    keep(f"passes-{given.model}-{given.ranks}", {name: value for name, value in found.items() if value is not None}, folder=given.work)
    if given.json:
        settings = {**vars(given), "work": str(given.work), "trace": str(given.trace or "")}
        print(json.dumps({"benchmark": "passes", "settings": settings, **found}))


def arguments() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="268m" if gpu else "tiny", choices=SHAPES)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=512 if gpu else 16, help="of one update, on all ranks")
    parser.add_argument("--prompt-len", type=int, default=128 if gpu else 16)
    parser.add_argument("--new-tokens", type=int, default=256 if gpu else 32)
    parser.add_argument("--cut", type=float, default=1.0, help="fraction of the answers that reach --new-tokens; the others are geometric")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--trace", type=Path, help="with --profile: the file that gets rank 0's events, for chrome://tracing or Perfetto")
    parser.add_argument("--limit", type=float, default=500.0, help="seconds at most")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="further settings")
    parser.add_argument("--json", action="store_true", help="make the last line one JSON object")
    return parser.parse_args()


def sequences(given: dict[str, Any]) -> Trainable:
    """All ranks' sequences; old log-probs unknown, as after a rollout with one update."""
    generator = torch.Generator().manual_seed(0)
    number, vocabulary = given["sequences"], SHAPES[given["model"]][1]["vocab_size"]
    ends = 1 - given["cut"] ** (1 / given["new_tokens"])  # the chance of each token to be an answer's last
    lengths = [given["new_tokens"]] * number
    if ends:
        lengths = torch.empty(number).geometric_(ends, generator=generator).clamp(max=given["new_tokens"]).long().tolist()
    rows = [torch.randint(4, vocabulary, (given["prompt_len"] + n,), generator=generator).tolist() for n in lengths]
    cut = [(row[: given["prompt_len"]], row[given["prompt_len"] :]) for row in rows]
    return batch_of(Trainable, cut, advantages=torch.randn(number, generator=generator).tolist(), old_logprobs=[float("nan")] * number)


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """The numbers of this rank, and the lines that tell them."""
    on_gpu = torch.cuda.is_available()
    config = make_config(
        {
            "strategy": "fsdp", "engine_type": "hf", "train_batch_size": given["sequences"], "packing_samples": True, "bf16": on_gpu,
            "max_tokens_per_micro_batch": 16384 if on_gpu else 256, "fused_linear_logprob": True,
            **{name: json.loads(value) for name, _, value in (word.partition("=") for word in given["set"])},
        }
    )  # fmt: skip
    strategy = get_strategy(config)
    torch.manual_seed(0)
    with strategy.world.device:
        model: Any = Qwen3ForCausalLM(Qwen3Config(**{"tie_word_embeddings": False, **SHAPES[given["model"]][1]}))
    model, optimizer = strategy.prepare_trainable(model, optimizer=AdamWSettings(learning_rate=1e-6))
    ready_for_rows(model, config=config, strategy=strategy)
    loss = strategy.registry.load("policy_loss", "ppo_clip")
    update = PolicyUpdate(strategy=strategy, config=config, actor=model, optimizer=optimizer, scheduler=None, policy_loss=loss)
    whole = sequences(given)
    rank, ranks = strategy.world.rank, strategy.world.world_size
    mine = whole.select(torch.arange(rank, len(whole), ranks))
    parts = update.batching.micro_batches(mine, torch.arange(len(mine)))

    def score() -> None:
        score_logprobs(model, mine, parts, strategy=strategy, batching=update.batching, temperatures=(1.0,))

    seconds = {"logprob": timed(score, given["rounds"]), "update": timed(lambda: update.run(mine, seed=0), given["rounds"])}
    trunk, head = arithmetic(given["model"])
    labels, tokens = int(whole.loss_mask.sum()), int(whole.offsets[-1])
    rate = matmul_rate()
    found: dict[str, Any] = {"tokens": tokens, "micro_batches": len(parts), "matmul_tflops": rate / 1e12, "graphs": graphs_made() or 0}
    found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    for name, times in (("logprob", 2), ("update", 6)):
        done = times * (trunk * tokens + head * labels) / seconds[name] / ranks
        found |= {f"{name}_s": seconds[name], f"{name}_tflops": done / 1e12, f"{name}_of_rate": done / rate}
    found["told"] = told(found)
    if given["profile"]:
        found["told"] += profiled(lambda: update.run(mine, seed=0), on_gpu=on_gpu, trace=None if rank else given["trace"])
    return found


def timed(work: Callable[[], object], rounds: int) -> float:
    """The median, to the end of the device's work; two rounds warm up."""
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def told(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['tokens']} tokens; rank 0 has {found['micro_batches']} micro-batches; {found['graphs']} graphs"]
    if found["peak_gib"] is not None:
        lines[0] += f"; peak {found['peak_gib']:.1f} GiB"
    lines += ["| pass | s | TFLOP/s of a rank | of the matmul rate |", "|---|---|---|---|"]
    for name in ("logprob", "update"):
        lines.append(f"| {name} | {found[f'{name}_s']:.3f} | {found[f'{name}_tflops']:.4g} | {found[f'{name}_of_rate']:.1%} |")
    return lines


def profiled(work: Callable[[], object], *, on_gpu: bool, trace: Path | None) -> list[str]:
    """One run: the device's fraction of its time, and the largest parts, milliseconds; `trace` gets all events."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as recorded:
        start = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    if trace:
        recorded.export_chrome_trace(str(trace))
    rows = recorded.key_averages()
    lines = [f"profiled: {seconds:.3f} s"]
    if on_gpu:
        kernels = sorted((row for row in rows if row.device_type.name == "CUDA"), key=lambda row: -row.self_device_time_total)
        busy = sum(row.self_device_time_total for row in kernels) / 1e6
        lines.append(f"kernels: {busy:.3f} s, {busy / seconds:.0%} of the time (streams side by side count twice)")
        lines += [f"  {row.self_device_time_total / 1e3:9.2f} ms {row.count:6d}x {row.key[:100]}" for row in kernels[:TOP]]
    host = sorted(rows, key=lambda row: -row.self_cpu_time_total)
    lines.append("host:")
    lines += [f"  {row.self_cpu_time_total / 1e3:9.2f} ms {row.count:6d}x {row.key[:100]}" for row in host[:TOP]]
    return lines


if __name__ == "__main__":
    main()
