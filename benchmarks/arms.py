"""One arm of a benchmark: a run of `lightrft train` in processes of its own, watched from outside; medians of its steady steps."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
POLL_S = 0.02


class DevicePeak(threading.Thread):
    """The most memory in use on each GPU of this process (NVML), GiB, since `start`; nothing without NVML. Polled from this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most: list[float] = []
        self.ended = False

    def run(self) -> None:
        """Polls until `ended`."""
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # no module, no driver: a CPU
            return
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in own_gpus(pynvml.nvmlDeviceGetCount())]
        self.most = [0.0] * len(handles)
        while not self.ended:
            now = [pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30 for handle in handles]
            self.most = [max(pair) for pair in zip(self.most, now, strict=True)]
            time.sleep(POLL_S)


def own_gpus(number: int) -> list[int]:
    """Those of a machine's GPUs that CUDA_VISIBLE_DEVICES leaves to this process, by their numbers; all where it names none so."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [int(one) for one in named] if all(one.isdecimal() for one in named) else list(range(number))


def run_ours(
    name: str, settings: Mapping[str, Any], *, work: Path, nproc: int = 1, warm: int = 2, env: Mapping[str, str] | None = None,
    limit_s: float = 400.0,
) -> dict[str, Any]:  # fmt: skip
    """A whole run; medians over the steps after `warm` of all metrics, and `wall_s` between lines of metrics.jsonl.

    A run that fails gives what it measured, `rc` and the end of its log; so does one stopped at `limit_s`.
    """
    out = work / "runs" / name
    subprocess.run(["rm", "-rf", str(out)], check=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    recipe, log = out.parent / f"{name}.yaml", out.parent / f"{name}.log"
    recipe.write_text(json.dumps({**settings, "output_dir": str(out)}), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "lightrft.cli.main", "train", "--config", str(recipe), "--nproc-per-node", str(nproc), "--json"]
    peak = DevicePeak()
    peak.start()
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        seen = follow(process, out / "metrics.jsonl", until=start + limit_s)
    peak.ended = True
    steady = [(when, row) for when, row in seen if row["step"] > warm and "time/verify_s" not in row]
    walls = [b[0] - a[0] for a, b in zip(seen, seen[1:], strict=False) if b in steady]
    found: dict[str, Any] = {"arm": name, "rc": process.returncode, "steps": len(seen), "total_s": round(time.monotonic() - start, 1)}
    found |= {"wall_s": round(statistics.median(walls), 4), "walls_s": [round(w, 3) for w in walls]} if walls else {}
    found |= {"device_peak_gib": [round(most, 2) for most in peak.most]}
    found |= medians([row for _, row in steady])
    if process.returncode:
        found["log"] = log.read_text(encoding="utf-8")[-1500:]
    return found


def follow(process: subprocess.Popen[bytes], file: Path, *, until: float) -> list[tuple[float, dict[str, Any]]]:
    """The lines of a run's metrics (its steps) with the time that each came, until the process ends; it is ended at `until`."""
    seen: list[tuple[float, dict[str, Any]]] = []
    position = 0
    while True:
        ended = process.poll() is not None
        if file.exists():
            with file.open(encoding="utf-8") as opened:
                opened.seek(position)
                while (line := opened.readline()).endswith("\n"):
                    position = opened.tell()
                    row = json.loads(line)
                    if row["step"] >= 1:
                        seen.append((time.monotonic(), row))
        if ended:
            return seen
        if time.monotonic() > until:
            process.terminate()
            process.wait(30)
        time.sleep(0.004)


def medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each number that every row has."""
    names = [name for name, value in (rows[0] if rows else {}).items() if isinstance(value, (int, float)) and all(name in r for r in rows)]
    return {name: round(statistics.median(row[name] for row in rows), 5) for name in names}


def table(found: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Markdown: one line for each arm, `columns` from heading to key."""
    lines = ["| arm | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in found:
        cells = [row.get(key) for key in columns.values()]
        lines.append(
            f"| {row['arm']} | "
            + " | ".join("" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
            + " |"
        )
    return "\n".join(lines)


PHASES = {
    "wall s": "wall_s", "rollout": "time/rollout_s", "reward": "time/reward_s", "log-prob": "time/logprob_s",
    "advantage": "time/advantage_s",
    "update": "time/update_s", "sync": "time/sync_s", "gap": "rollout/logprob_gap", "GiB rollout": "memory/rollout_gib",
    "GiB log-prob": "memory/logprob_gib", "GiB update": "memory/update_gib", "GiB sync": "memory/sync_gib", "NVML peak": "device_peak_gib",
    "graphs": "compile/graphs", "steps": "steps", "rc": "rc",
}  # fmt: skip
