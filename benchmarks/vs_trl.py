"""A step of ours against one of TRL 1.16 on the same work, alternating on one machine, and both curves of rewards. `make vs-trl`.

The work: prompts of random ids, completions of a fixed length, one update for each rollout, no KL. On a GPU both have vLLM in their
process, asleep while they train; on a CPU both generate through transformers (TRL's path there; our engine `hf`), on one rank or two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from arms import DevicePeak, run_ours
from random_models import SHAPES, workload
from results import keep

HERE = Path(__file__).resolve().parent
GPU: dict[str, Any] = dict(model="268m", prompts=64, samples=8, prompt_len=128, new_tokens=256, micro=32, steps=7, mem_util=0.3)
CPU: dict[str, Any] = dict(model="small", prompts=8, samples=4, prompt_len=32, new_tokens=64, micro=8, steps=6, mem_util=0.0)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    work = GPU if on_gpu else CPU
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in work.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, alternating")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--trl-python", default=sys.executable, help="the Python that has trl")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="further settings of ours")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args()
    given.work = given.work.absolute()
    assert given.model in SHAPES, f"--model {given.model!r} is none of {', '.join(SHAPES)}"
    arms: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for number in range(given.rounds):
        arms["ours"].append(ours(given, number, on_gpu=on_gpu))
        arms["trl"].append(trl(given, on_gpu=on_gpu))
        for name, found in arms.items():
            print(f"{name} {number}: {json.dumps(found[-1])}", flush=True)
    wall = {name: statistics.median(second for row in found for second in row["walls_s"]) for name, found in arms.items()}
    found = {
        "ours_s": round(wall["ours"], 4), "trl_s": round(wall["trl"], 4), "ratio": round(wall["ours"] / wall["trl"], 4),
        "ours_gib": max((p for row in arms["ours"] for p in row["device_peak_gib"]), default=0.0),
        "trl_gib": max((p for row in arms["trl"] for p in row["device_peak_gib"]), default=0.0),
    }  # fmt: skip
    print(f"a step: ours {wall['ours']:.3f} s, TRL {wall['trl']:.3f} s, ratio {found['ratio']:.3f}")
    for name, rows in arms.items():
        print(f"rewards of {name}: {rows[0]['rewards']}")
    keep(f"vs_trl-{'gpu' if on_gpu else 'cpu'}-{given.ranks}", found, folder=given.work)
    if given.json:
        print(json.dumps({**found, "arms": arms}))


def ours(given: argparse.Namespace, number: int, *, on_gpu: bool) -> dict[str, Any]:
    """Our arm: FSDP2 in bfloat16 beside vLLM; on a CPU `single`, or FSDP2 on two ranks, in float32 beside `hf`."""
    engine = {"engine_type": "vllm", "engine_mem_util": given.mem_util, "bf16": True} if on_gpu else {"engine_type": "hf"}
    strategy = "fsdp" if on_gpu or given.ranks > 1 else "single"
    rows = given.prompts * given.samples
    settings = {
        **workload(given.model, given.work, prompt_len=given.prompt_len, new_tokens=given.new_tokens), **engine, "strategy": strategy,
        "rollout_batch_size": given.prompts, "n_samples_per_prompt": given.samples, "train_batch_size": rows,
        "micro_train_batch_size": given.micro, "micro_rollout_batch_size": given.micro, "learning_rate": given.learning_rate,
        "num_episodes": 100, "max_steps": given.steps, "seed": 0,
        **{name: json.loads(value) for name, _, value in (word.partition("=") for word in given.set)},
    }  # fmt: skip
    found = run_ours(f"ours-{number}", settings, work=given.work, nproc=given.ranks)
    assert not found["rc"], found.get("log")
    lines = (given.work / "runs" / f"ours-{number}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return found | {"rewards": [round(row["rollout/reward"], 4) for row in map(json.loads, lines) if row["step"] >= 1]}


def trl(given: argparse.Namespace, *, on_gpu: bool) -> dict[str, Any]:
    """TRL's arm, in its own Python."""
    own = workload(given.model, given.work, prompt_len=given.prompt_len, new_tokens=given.new_tokens)
    command = [
        given.trl_python,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={given.ranks}",
        str(HERE / "trl_arm.py"),
    ]
    command += ["--model", own["model_name_or_path"], "--data", own["prompt_data"], "--work", str(given.work), "--ranks", str(given.ranks)]
    for name in ("prompts", "samples", "prompt_len", "new_tokens", "micro", "steps", "mem_util", "learning_rate"):
        command += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    peak = DevicePeak()
    peak.start()
    start = time.monotonic()
    env = {**os.environ, **({} if on_gpu else {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""})}
    done = subprocess.run([*command, *(["--vllm"] if on_gpu else [])], capture_output=True, text=True, env=env, cwd=given.work, check=False)
    peak.ended = True
    assert not done.returncode, done.stdout[-1000:] + done.stderr[-3000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith('{"wall_s"')]
    return {**json.loads(rows[-1]), "total_s": round(time.monotonic() - start, 1), "device_peak_gib": [round(p, 2) for p in peak.most]}


if __name__ == "__main__":
    main()
