"""Peak activation memory of each rank where 1, 2 and 4 ranks share a row (`sp_size`), at 4 k to 32 k tokens; it falls as 1/sp.

A Qwen3 whose embeddings are frozen makes one forward and backward pass over one packed row, by the fused head. Peaks are above what was
held before the pass: weights and gradients are there already. On CPUs the ranks meet through gloo and a peak is that of the process;
with `--cuda` each rank has a GPU, they meet through NCCL, and a peak is what torch has allocated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from memory import held
from transformers import Qwen3Config, Qwen3ForCausalLM

from lightrft.batch.micro_batch import MicroBatch, packed
from lightrft.batch.stages import Sampled
from lightrft.distributed.mesh import Axis, Mesh
from lightrft.distributed.world import World
from lightrft.models.attention import use_our_attention
from lightrft.models.score import score_tokens
from lightrft.testing import run_spmd
from lightrft.testing.batches import batch_of

MIN_OF_IDEAL = 0.9
"""Memory of one rank over memory of each of `sp` has to be this much of `sp`."""
MAX_ERROR = {"cpu": 1e-4, "cuda": 0.1}
"""Of the log-probs against those of the first of the sizes: float32 on CPUs, bfloat16 on GPUs."""

TITLES = ("tokens", "sp", "GiB a rank", "of sp 1", "of 1/sp", "seconds", "log-prob error", "")
WIDTHS = (8, 4, 12, 9, 9, 10, 16, 8)


def main() -> int:
    """Returns 1 where memory falls by less than the bound, or log-probs differ."""
    args = arguments()
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed leaves the process at once
    available = torch.cuda.device_count() if args.cuda else max(args.sp)
    sizes = sorted(size for size in args.sp if size <= available)
    if len(sizes) < len(args.sp):
        print(f"{available} GPUs: without sp {', '.join(str(size) for size in args.sp if size > available)}")
    print_row(*TITLES)
    rows = []
    for tokens in args.tokens:
        one: dict[str, Any] = {}
        for sp in sizes:
            found = run_spmd(measure, sp, vars(args), tokens, timeout_s=args.limit, cuda=args.cuda)
            row = {
                "tokens": tokens,
                "sp": sp,
                "peak": max(rank["peak"] for rank in found),
                "seconds": max(rank["seconds"] for rank in found),
            }
            one = one or row | {"logprobs": found[0]["logprobs"]}
            row["ratio"] = one["peak"] / row["peak"]
            row["ideal"] = row["ratio"] / (sp / one["sp"])
            row["error"] = max(abs(a - b) for rank in found for a, b in zip(rank["logprobs"], one["logprobs"], strict=True))
            row["ok"] = row["ideal"] >= MIN_OF_IDEAL and row["error"] <= MAX_ERROR["cuda" if args.cuda else "cpu"]
            rows.append(row)
            print_row(*shown(row))
    ok = all(row["ok"] for row in rows)
    if args.json:
        print(json.dumps({"benchmark": "sequence_memory", "ok": ok, "min_of_ideal": MIN_OF_IDEAL, "settings": vars(args), "rows": rows}))
    return 0 if ok else 1


def arguments() -> argparse.Namespace:
    cuda = "--cuda" in sys.argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="a GPU for each rank, bfloat16; else CPUs, float32, a smaller model")
    parser.add_argument(
        "--sp", type=int, nargs="+", default=[1, 2, 4], help="ranks that share the row; the first is what others are compared to"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16_384, 32_768], help="of the row")
    parser.add_argument("--longest", type=int, default=0 if cuda else 2048, help="tokens of a sequence of the row; 0: the row is one")
    parser.add_argument("--hidden", type=int, default=2048 if cuda else 256)
    parser.add_argument("--layers", type=int, default=8 if cuda else 4)
    parser.add_argument("--heads", type=int, default=16 if cuda else 4)
    parser.add_argument("--kv_heads", type=int, default=4 if cuda else 2)
    parser.add_argument("--vocabulary", type=int, default=32_000 if cuda else 1024)
    parser.add_argument(
        "--chunk_size", type=int, default=512 if cuda else 256, help="tokens of the fused head at a time: its part is the same for all sp"
    )
    parser.add_argument("--rounds", type=int, default=3 if cuda else 1, help="passes after the first, which warms up")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of one line at most")
    parser.add_argument("--json", action="store_true", help="make the last line one JSON object")
    return parser.parse_args()


def measure(settings: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Peak in bytes and seconds of a pass on this rank, and some log-probs. Collective over all ranks, which share the row."""
    args = argparse.Namespace(**settings)
    world = World.join(need_group=True)
    axis = Mesh.of(world, sequence=world.world_size).sequence
    model = make(args, world.device)
    micro = row_of(args, tokens, axis, world.device)
    weights = torch.randn(tokens, generator=torch.Generator().manual_seed(1)).to(world.device)
    peaks, times = [], []
    for _ in range(args.rounds + 1):
        model.zero_grad(set_to_none=False)
        before, start = held(world.device, reset=True), now(world)
        logprobs = score_tokens(model, micro, temperatures=(1.0,), fused_chunk=args.chunk_size).logprobs[0]
        (logprobs * weights[: len(logprobs)]).sum().backward()
        times.append(now(world) - start)
        peaks.append(held(world.device) - before)
        some = logprobs.detach().float()[:: max(len(logprobs) // 64, 1)].tolist()
        del logprobs
    return {"peak": max(peaks[1:]), "seconds": min(times[1:]), "logprobs": some}


def make(args: argparse.Namespace, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=args.vocabulary, hidden_size=args.hidden, intermediate_size=3 * args.hidden, num_hidden_layers=args.layers,
        num_attention_heads=args.heads, num_key_value_heads=args.kv_heads, head_dim=args.hidden // args.heads, tie_word_embeddings=False,
        max_position_embeddings=max(args.tokens),
    )  # fmt: skip
    build: Any = Qwen3ForCausalLM
    model = build(config).to(device=device, dtype=torch.bfloat16 if args.cuda else torch.float32)
    model.model.embed_tokens.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    use_our_attention(model, setting="sp_size")
    return model


def row_of(args: argparse.Namespace, tokens: int, axis: Axis, device: torch.device) -> MicroBatch:
    """One packed row of sequences of `longest` tokens, every token but the first of each a label."""
    longest = args.longest or tokens
    ids = torch.randint(args.vocabulary, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    batch = batch_of(Sampled, [(part[:1], part[1:]) for part in (ids[at : at + longest] for at in range(0, tokens, longest))])
    return packed(batch, torch.arange(len(batch)), device=device, axis=axis)


def now(world: World) -> float:
    """Seconds, once every rank is here and its device has done what it was asked."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    if world.world_size > 1:
        dist.barrier(group=world.group)
    return time.perf_counter()


def shown(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = f"{row['peak'] / 2**30:.3f}", f"{1 / row['ratio']:.3f}", f"{row['ideal']:.0%}", f"{row['seconds']:.2f}", f"{row['error']:.1e}"
    return str(row["tokens"]), str(row["sp"]), *numbers, "ok" if row["ok"] else "BEYOND"


def print_row(*cells: str) -> None:
    print("".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
