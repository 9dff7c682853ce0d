"""Does `lightrft train` on two ranks of FSDP2 end well when it is told to, and go on as the same run?"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import MAIN, curve, quiet_environment, write_recipe

LIMIT_S = 240
CHANGES = {"num_episodes": 4, "max_steps": 6, "eval_every": 2, "save_every": 3, "fsdp_cpu_offload": True, "verify_sync_every": 2}


def start(recipe: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", MAIN, "train", "--config", str(recipe), "--nproc-per-node", "2", "--json", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet_environment())


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_saves_exits_0_and_the_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole = write_recipe(tmp_path / "whole", **CHANGES)
    code, _, err = ended(start(whole))
    assert code == 0, err

    cut = write_recipe(tmp_path / "cut", **CHANGES)
    process = start(cut)
    wait_for(tmp_path / "cut" / "run" / "metrics.jsonl", '"step": 1', process)
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["stopped"] == "SIGTERM" and 1 <= summary["steps"] < 6
    assert "SIGTERM: the run is saved" in err and Path(summary["checkpoint"]).name == f"step-{summary['steps']}"

    code, out, err = ended(start(cut, "--resume_from", "latest"))
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["stopped"] == ""
    assert len(curve(tmp_path / "whole" / "run")) == 6 * 4
    assert curve(tmp_path / "cut" / "run") == curve(tmp_path / "whole" / "run"), "bitwise, on the CPU"
    weights = [(tmp_path / name / "run" / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]

    code, _, err = ended(start(cut, "--resume_from", "latest", "--learning_rate", "1"))
    assert code == 2 and err.splitlines() == [
        "error: the checkpoint was saved with learning_rate=0.001, here 1.0; set it as it was, or begin a run without resume_from"
    ]
