"""What only several ranks show, a command for each part, each under a time limit: `make gpu-multi` on a machine with 2, 4 or 8 GPUs.

    parity   the updates of FSDP2 and ZeRO 0 to 3, float32 and bfloat16, against one process
    rows     packed rows, rows that ranks share, the fused head: against one process
    memory   activations of each rank where 1, 2 and 4 of them share a row
    engine   one engine over 1, 2 and 4 ranks beside the strategies: syncs, and on GPUs sleep and wake
    frozen   frozen models sharded over 1, 2, 4 and all ranks
    guide    the strategy guide's examples of settings, as they stand, with as many ranks as there are
    scaling  phases of a step on 1, 2, 4 and 8 ranks, the same work for all and as much for each, beside the scaling model
    lost     a rank that raises in each phase, and ranks that hang

Without GPUs the same parts run on CPU ranks through gloo, with the engine `hf`. Each part's output is in `--work`/PART.log.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from vs_trl import CPU, GPU

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
GUIDE = {
    "zero-2": (4, 0.9, "--zero_stage 2 --enable_engine_sleep --micro_train_batch_size 1 --train_batch_size 128"),
    "fsdp-offload": (
        2,
        0.85,
        "--fsdp --fsdp_cpu_offload --use_mp_opt --bf16 --enable_engine_sleep --micro_train_batch_size 1 --train_batch_size 64",
    ),
}
"""Its two examples for text: ranks of an engine (all, where there are fewer), its part of a GPU's memory, and the other flags. `use_mp_opt`
needs `bf16`, which the example leaves open; on a CPU the engine takes no part of a GPU's memory.
"""
TINY = (
    "--scratch_tokenizer char --scratch_layers 2 --scratch_hidden 256 --scratch_heads 4 --scratch_kv_heads 4 --prompt_max_len 32 "
    "--generate_max_len 8 --n_samples_per_prompt 8 --rollout_batch_size 16 --max_steps 2 --plot_every 0"
)
"""What the examples leave open: a model made on the spot, and two small steps. Heads of 64, which vLLM's kernels on GPUs are made for."""


@dataclass(frozen=True)
class Step:
    """One command of a part."""

    part: str
    words: tuple[str, ...]
    limit_s: float


@dataclass(frozen=True)
class Outcome:
    """How it ended: `rc` as of the process, None where its time ran out; `last` is its last line, its JSON where it prints one."""

    part: str
    command: str
    rc: int | None
    seconds: float
    last: str


def main() -> int:
    """Returns 1 if a command failed or ran out of its time."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count() if cuda else 4)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-multi"))
    parser.add_argument("--limit", type=float, default=400.0, help="seconds of one command at most")
    parser.add_argument("--json", action="store_true", help="make the last line one JSON object")
    args = parser.parse_args()
    work: Path = args.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    found = []
    for part in args.parts:
        for words in PARTS[part](args.ranks, cuda, work):
            found.append(run(Step(part, tuple(words), args.limit), work / f"{part}.log"))
            print(told(found[-1]), flush=True)
    ok = all(one.rc == 0 for one in found)
    result = {"benchmark": "gpu_multi", "ok": ok, "ranks": args.ranks, "cuda": cuda, "commands": [asdict(one) for one in found]}
    (work / "gpu_multi.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(one.rc == 0 for one in found)} of {len(found)} commands ok; {work / 'gpu_multi.json'}")
    if args.json:
        print(json.dumps(result))
    return 0 if ok else 1


def run(step: Step, log: Path) -> Outcome:
    """Runs it, its output appended to `log`."""
    start = time.monotonic()
    with log.open("a+", encoding="utf-8") as file:
        print(f"$ {' '.join(step.words)}", file=file, flush=True)
        process = subprocess.Popen(step.words, stdout=file, stderr=subprocess.STDOUT)
        try:
            rc: int | None = process.wait(step.limit_s)
        except subprocess.TimeoutExpired:
            rc = None
            process.terminate()  # its ranks end with it
            process.wait(60)
        file.seek(0)
        lines = file.read().strip().splitlines()
    return Outcome(step.part, " ".join(step.words[1:]), rc, round(time.monotonic() - start, 1), lines[-1] if lines else "")


def told(one: Outcome) -> str:
    """One line; of what failed, the end of its output."""
    verdict = {0: "ok", None: "OUT OF TIME"}.get(one.rc, f"FAILED ({one.rc}): {one.last[:200]}")
    return f"{one.part:<9}{one.seconds:>7.1f} s  {verdict}\n         {one.command}"


def sizes(ranks: int) -> list[int]:
    """Powers of two up to all ranks."""
    return [size for size in (1, 2, 4, 8) if size <= ranks]


def script(name: str, *words: object) -> list[str]:
    return [sys.executable, str(HERE / f"{name}.py"), *map(str, words)]


def pytest(*words: object) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-s", *map(str, words)]


def parity(ranks: int, cuda: bool, work: Path) -> Iterator[list[str]]:
    yield script("parity", "--ranks", ranks, "--json", *["--cuda"] * cuda)


def rows(ranks: int, cuda: bool, work: Path) -> Iterator[list[str]]:
    yield script("row_parity", "--ranks", ranks, "--json", *["--cuda"] * cuda)


def memory(ranks: int, cuda: bool, work: Path) -> Iterator[list[str]]:
    shared = [size for size in sizes(ranks) if size <= 4]
    yield script("sequence_memory", "--sp", *shared, "--json", *(["--cuda"] if cuda else ["--tokens", 4096, 8192]))


def engine(ranks: int, cuda: bool, work: Path) -> Iterator[list[str]]:
    if cuda:
        yield pytest(TESTS / "gpu/test_vllm.py", "-m", "gpu")
    else:
        tps = [size for size in sizes(ranks) if size <= 4]
        yield script("engine_matrix", "--engines", "hf", "--ranks", ranks, "--tp", *tps, "--json")


def frozen(ranks: int, cuda: bool, work: Path) -> Iterator[list[str]]:
    yield pytest(HERE.parent / "packages/backend-fsdp/tests/test_frozen.py", "-m", "gpu" if cuda else "not gpu")


def guide(ranks: int, cuda: bool, work: Path) -> Iterator[list[str]]:
    data = work / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}+{n}=", "answer": str(2 * n)}) + "\n" for n in range(64)), encoding="utf-8")
    for name, (tp, memory, flags) in GUIDE.items():
        engine = ["--engine_type", "vllm", "--engine_mem_util", memory] if cuda else ["--engine_type", "hf"]
        words = [*flags.split(), *TINY.split(), "--engine_tp_size", min(tp, ranks), *engine]
        words += ["--prompt_data", data, "--output_dir", work / name, "--nproc-per-node", ranks]
        yield [sys.executable, str(HERE.parent / "examples/train.py"), *map(str, words)]


def scaling(ranks: int, cuda: bool, work: Path) -> Iterator[list[str]]:
    size = GPU if cuda else CPU

    def folder(kind: str, count: int) -> Path:
        return work / f"{kind}-{count}"

    for kind in ("strong", "weak"):
        for count in sizes(ranks):
            prompts = size["prompts"] * (count if kind == "weak" else 1)
            yield script("phases", "--ranks", count, "--prompts", prompts, "--work", folder(kind, count), "--json")
        one = folder(kind, 1) / f"phases-{size['model']}.json"
        for count in sizes(ranks)[1:]:
            measured = folder(kind, count) / one.name
            yield script("scale_model", one, "--ranks", *sizes(ranks), "--measured", measured, "--json", *["--weak"] * (kind == "weak"))


def lost(ranks: int, cuda: bool, work: Path) -> Iterator[list[str]]:
    yield pytest(TESTS / "test_failing_ranks.py")
    yield pytest(TESTS / "test_hangs.py")


PARTS = {
    "parity": parity, "rows": rows, "memory": memory, "engine": engine, "frozen": frozen, "guide": guide, "scaling": scaling, "lost": lost,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
