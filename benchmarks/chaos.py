"""Steps lost when ranks are killed at random moments and the run goes on by itself. `make chaos`.

One small run on two ranks is trained straight, and again with `--max-restarts` while a killer sends SIGKILL to a random rank at random
moments. At the end the weights must be those of the straight run, bit by bit. A row says what each kill hit and whether a save was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from lightrft.run.checkpoint_folder import saved_in
from lightrft.testing.tiny import tiny_model_folder

SETS: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp"},
    "zero-2": {"strategy": "deepspeed", "zero_stage": 2},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="how many ranks are killed in each run (default: 10)")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    given = parser.parse_args()
    found = {}
    for name in given.sets:
        with tempfile.TemporaryDirectory(prefix="lightrft-chaos-") as folder:
            found[name] = chaos(Path(folder), SETS[name], kills=given.kills, steps=given.steps, seed=given.seed)
        print(line(name, found[name]), flush=True)
    if given.json:
        print(json.dumps(found))
    return 0 if all(one["bitwise"] and one["exit"] == 0 and one["lost"] == 0 for one in found.values()) else 1


def line(name: str, found: dict[str, Any]) -> str:
    """One row of the table."""
    where = ", ".join(f"{phase} {number}" for phase, number in sorted(found["hit"].items()))
    same = "bitwise the straight run" if found["bitwise"] else "NOT the straight run"
    end = f"{found['lost']} saves lost, exit {found['exit']}, {same}, {found['seconds']:.0f} s"
    return f"{name}: {found['kills']} kills ({where}), {found['restarts']} restarts, {end}"


def chaos(folder: Path, settings: dict[str, Any], *, kills: int, steps: int, seed: int) -> dict[str, Any]:
    """The straight run, the one with kills, and what came of it."""
    recipe = _recipe(folder, settings | {"max_steps": steps})
    began = time.monotonic()
    straight = _start(recipe, folder / "straight", restarts=0)
    if straight.wait(timeout=1800):
        raise SystemExit(f"the straight run failed: {straight.stderr.read() if straight.stderr else ''}")
    seconds = time.monotonic() - began
    run, draw = folder / "killed", random.Random(seed)
    process = _start(recipe, run, restarts=10 * kills)
    hit: Counter[str] = Counter()
    lost, done = 0, 0
    while process.poll() is None:
        if done < kills and not _wait_and_kill(process, run, draw, within=seconds / 2, hit=hit):
            continue
        if done < kills:
            done += 1
            lost += _lost(run)
        time.sleep(0.1)
    a, b = (load_file(path / "model" / "model.safetensors") if (path / "model").is_dir() else {} for path in (folder / "straight", run))
    same = bool(a) and a.keys() == b.keys() and all(bool((a[name] == b[name]).all()) for name in a)
    told = process.stderr.read() if process.stderr else ""
    return {
        "kills": done, "hit": dict(hit), "lost": lost, "exit": process.returncode, "bitwise": same,
        "restarts": told.count("restart "), "seconds": time.monotonic() - began, "error": "" if same else told[-2000:],
    }  # fmt: skip


_newest: dict[Path, int] = {}


def _lost(run: Path) -> int:
    """1 where the newest checkpoint is older than the newest one at the last kill."""
    step = max((one.step for one in saved_in(run)), default=-1)
    before, _newest[run] = _newest.get(run, -1), step
    return int(step < before)


def _wait_and_kill(process: subprocess.Popen[str], run: Path, draw: random.Random, *, within: float, hit: Counter[str]) -> bool:
    """A random moment; then a random rank is killed, if one is there."""
    until = time.monotonic() + draw.uniform(0.5, within)
    while time.monotonic() < until:
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    ranks = _ranks(process.pid)
    if not ranks:
        return False
    saving = bool(list((run / "checkpoints").glob(".step-*")))
    started = (run / "metrics.jsonl").exists()
    hit["while saving" if saving else "training" if started and len(ranks) > 1 else "starting"] += 1
    os.kill(draw.choice(ranks), signal.SIGKILL)
    return True


def _ranks(launcher: int) -> list[int]:
    try:
        below = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        return [int(one) for one in below if b"lightrft.cli.worker" in Path(f"/proc/{one}/cmdline").read_bytes()]
    except OSError:
        return []


def _start(recipe: Path, run: Path, *, restarts: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "lightrft.cli.main",
        "train",
        "--config",
        str(recipe),
        "--output_dir",
        str(run),
        "--nproc-per-node",
        "2",
    ]
    command += ["--max-restarts", str(restarts)] if restarts else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def _recipe(folder: Path, changes: dict[str, Any]) -> Path:
    tiny_model_folder(folder / "model")
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "length.py").write_text("def reward(samples):\n    return [float(len(s.completion) % 5) for s in samples]\n")
    settings = {
        "engine_type": "hf", "model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "rows.jsonl"),
        "reward": [f"{folder / 'length.py'}:reward"], "rollout_batch_size": 4, "n_samples_per_prompt": 4, "train_batch_size": 16,
        "prompt_max_len": 64, "generate_max_len": 16, "num_episodes": 100, "learning_rate": 1e-3, "plot_every": 0, "save_every": 1,
        "keep_checkpoints": 2, "loggers": ["jsonl"],
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
