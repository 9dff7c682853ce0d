"""Memory and time of log-probs and their gradients: logits kept as a whole against a chunk at a time, plain and fused.

A Qwen3 of one thin layer under a real vocabulary, so that the output layer is nearly all of it; every token but the first of each row is a
label. Peaks are above what was held before the forward pass, gradients included. On a CPU, seconds are those of the process, which
other work on the machine does not lengthen, and each path has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from lightrft.models.heads import LabelRequest, score_labels
from lightrft.models.logprob_spec import LogprobColumns

Tensor = torch.Tensor

ROW = 1024
MIN_MEMORY_RATIO, MAX_TIME_RATIO = 5.0, 1.1
"""What the fused path has to reach against the logits."""

TITLES = ("path", "peak GiB", "seconds", "memory", "time", "log-prob error", "gradient error", "")
WIDTHS = (9, 10, 9, 8, 7, 16, 16, 8)


def main() -> int:
    """Returns 1 where the fused path is beyond a bound."""
    args = arguments()
    if args.path:
        print(json.dumps(measure(args.path, args)))
        return 0
    rows = {path: in_a_process(path) if args.device == "cpu" else measure(path, args) for path in PATHS}
    print_row(*TITLES)
    for path, row in rows.items():
        row["memory"], row["time"] = rows["logits"]["peak"] / row["peak"], row["seconds"] / rows["logits"]["seconds"]
        row["ok"] = path != "fused" or (row["memory"] >= MIN_MEMORY_RATIO and row["time"] <= MAX_TIME_RATIO)
        errors = [f"{distance(row[name], rows['logits'][name]):.1e}" for name in ("logprobs", "gradient")]
        numbers = f"{row['peak'] / 2**30:.2f}", f"{row['seconds']:.3f}", f"{row['memory']:.1f}x", f"{row['time']:.2f}x"
        print_row(path, *numbers, *errors, "ok" if row["ok"] else "BEYOND")
    ok = all(row["ok"] for row in rows.values())
    if args.json:
        shown = {path: {key: row[key] for key in ("peak", "seconds", "memory", "time", "ok")} for path, row in rows.items()}
        print(json.dumps({"benchmark": "memory", "ok": ok, "settings": vars(args), "paths": shown}))
    return 0 if ok else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="bfloat16" if has_gpu else "float32", choices=["bfloat16", "float32"])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=8192 if has_gpu else 2048, help=f"in rows of {ROW}")
    parser.add_argument("--chunk_size", type=int, default=4096, help="of the fused path")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--entropy", action="store_true", help="the entropy and its gradient too")
    parser.add_argument("--rounds", type=int, default=5 if has_gpu else 2, help="the fastest counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--path", choices=list(PATHS), help=argparse.SUPPRESS)
    return parser.parse_args()


def from_logits(model: Any, ids: Tensor, request: LabelRequest) -> LogprobColumns:
    """All logits of labels at once, and autograd."""
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[request.rows].float() / request.temperatures[0]
    logprobs = logits.gather(-1, request.labels[:, None]).squeeze(-1) - logits.logsumexp(-1)
    if not request.entropy:
        return LogprobColumns((logprobs,))
    normalized = logits.log_softmax(-1)
    return LogprobColumns((logprobs,), -(normalized.exp() * normalized).sum(-1))


def plain(model: Any, ids: Tensor, request: LabelRequest) -> LogprobColumns:
    return score_labels(model, replace(request, chunk_size=None), input_ids=ids)


def fused(model: Any, ids: Tensor, request: LabelRequest) -> LogprobColumns:
    return score_labels(model, request, input_ids=ids)


PATHS: dict[str, Callable[[Any, Tensor, LabelRequest], LogprobColumns]] = {"logits": from_logits, "plain": plain, "fused": fused}


def in_a_process(path: str) -> dict[str, Any]:
    """`measure` where no other path has left memory behind."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--path", path], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Peak in bytes and seconds of a forward and backward pass; log-probs, and samples of the head's gradient."""
    device = torch.device(args.device)
    model = make(args, device)
    ids = torch.randint(args.vocab, (args.tokens // ROW, ROW), device=device)
    rows = torch.arange(ids.numel(), device=device).view_as(ids)[:, :-1].flatten()
    request = LabelRequest(
        rows=rows, labels=ids.flatten()[rows + 1], temperatures=(args.temperature,), entropy=args.entropy, chunk_size=args.chunk_size
    )
    weight = torch.randn(len(rows), device=device)
    peaks, times = [], []
    for _ in range(args.rounds + 1):  # the first warms up
        model.zero_grad()
        before = held(device, reset=True)
        start = now(device)
        found = PATHS[path](model, ids, request)
        sum(((column * weight).sum() for column in found.all()), torch.zeros((), device=device)).backward()
        times.append(now(device) - start)
        peaks.append(held(device) - before)
        logprobs = found.logprobs[0].detach().tolist()
        del found
    gradient = model.lm_head.weight.grad.float()[:: max(args.vocab // 100, 1)].flatten()[::7]
    return {"peak": max(peaks[1:]), "seconds": min(times[1:]), "logprobs": logprobs, "gradient": gradient.tolist()}


def make(args: argparse.Namespace, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=args.vocab, hidden_size=args.hidden, intermediate_size=args.hidden, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=1, head_dim=64, tie_word_embeddings=False,
    )  # fmt: skip
    build: Any = Qwen3ForCausalLM
    model = build(config).to(device=device, dtype=getattr(torch, args.dtype)).eval()
    model.model.embed_tokens.requires_grad_(False)  # its gradient is as large as the head's, and no path changes it
    return model


def held(device: torch.device, *, reset: bool = False) -> int:
    """Bytes in use: the most since the last reset, or with `reset` those of now. On a CPU, of the whole process (Linux)."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    field = "VmRSS:" if reset else "VmHWM:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def distance(found: list[float], expected: list[float]) -> float:
    """The largest difference, relative to the largest value."""
    scale = max(abs(value) for value in expected)
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) / scale


def print_row(*cells: str) -> None:
    print("".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
