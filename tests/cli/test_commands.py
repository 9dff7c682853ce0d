"""The commands as installed. Two ranks, FSDP2 and the reference engine, from the command line to its last line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIGHTRFT = str(Path(sys.executable).with_name("lightrft"))
SMALL = [
    *["--sft_steps", "1", "--max_eval_samples", "8", "--rollout_batch_size", "4", "--n_samples_per_prompt", "4"],
    *["--train_batch_size", "16", "--micro_train_batch_size", "4", "--plot_every", "0"],
]
LIMIT_S = 120


def environment(folder: Path) -> dict[str, str]:
    (folder / "temporary").mkdir(exist_ok=True)
    return {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "temporary")}


def lightrft(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LIGHTRFT, *words], capture_output=True, text=True, cwd=folder, env=environment(folder), timeout=LIMIT_S)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A demo of two steps on two ranks, in the run folder `run`."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, lightrft("demo", "--max-steps", "2", "--output-dir", "run", "--seed", "5", "--json", *SMALL, folder=folder)


def test_the_demo_ends_with_one_json_object(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = finished
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"accuracy_before", "accuracy_after", "steps", "seconds", "seed", "world_size", "strategy", "engine", "run_dir"} <= set(result)
    assert [result[name] for name in ("steps", "seed", "world_size", "strategy", "engine", "run_dir")] == [2, 5, 2, "fsdp", "hf", "run"]
    assert (folder / "run" / "model" / "config.json").is_file()
    assert list((folder / "temporary").glob("lightrft-*")) == []


def test_eval_takes_the_runs_configuration_and_model(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, demo = finished
    done = lightrft(
        "eval", "--config", "run/config.yaml", "--model_name_or_path", "run/model", "--nproc-per-node", "2", "--json", folder=folder
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics["exact_match"] == json.loads(demo.stdout.splitlines()[-1])["accuracy_after"]
    assert metrics["num_prompts"] == 8


def test_train_under_torchrun_runs_in_its_ranks(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lightrft.cli.main"]
    words = ["train", "--config", "run/config.yaml", "--output_dir", "again", "--max_steps", "1", "--json"]
    done = subprocess.run([*torchrun, *words], capture_output=True, text=True, cwd=folder, env=environment(folder), timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    objects = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(found["steps"], found["world_size"], found["run_dir"]) for found in objects] == [(1, 2, "again")]


@pytest.mark.parametrize(
    ("body", "code", "first"),
    [
        ("return [float('nan')] * len(samples)", 2, "error: reward '"),
        ("os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else 0; return [0.0] * len(samples)", 1, "rank 1 was killed by SIGKILL"),
    ],
)
def test_a_failure_inside_a_rank(body: str, code: int, first: str, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(f"import os\ndef one(samples):\n    {body}\n", encoding="utf-8")
    words = ["demo", "--max-steps", "1", "--output-dir", "run", "--reward", "rewards.py:one", "--sft_target_reward", "0", *SMALL]
    done = lightrft(*words, folder=tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith(first), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupted_demo_leaves_no_process(tmp_path: Path) -> None:
    words = [LIGHTRFT, "demo", "--max-steps", "100000", "--output-dir", "run", *SMALL]
    with started(words, tmp_path) as process:
        wait_for(tmp_path / "run" / "metrics.jsonl")
        assert len(ranks_of(str(tmp_path))) == 2  # their command lines name a file in the temporary folder
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0  # at the next boundary of a step
    assert list((tmp_path / "run").glob("checkpoints/*"))
    assert ranks_of(str(tmp_path)) == []
    assert list((tmp_path / "temporary").glob("lightrft-*")) == []


@contextmanager
def started(words: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(words, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()  # its ranks follow it
        process.wait()


def wait_for(path: Path) -> None:
    end = time.monotonic() + LIMIT_S
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)


def ranks_of(marker: str) -> list[str]:
    """The command lines of processes that mention `marker`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if marker in words:
            found.append(words)
    return found
