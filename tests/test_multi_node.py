"""A run on two machines is the run on one. Two torchrun agents that find each other by c10d, and the Slurm script that starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import COMPARED, MAIN, curve, quiet_environment, write_recipe

SBATCH = Path(__file__).resolve().parents[1] / "examples/slurm/train.sbatch"
LIMIT_S = 180


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def on_two_nodes(recipe: Path, *words: str, ranks_each: int = 1) -> list[subprocess.CompletedProcess[str]]:
    """Both agents' ends."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(ranks_each)]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "test"]
    command = [*torchrun, "-m", MAIN, "train", "--config", str(recipe), *words]
    agents = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet_environment()) for _ in range(2)
    ]
    try:
        ends = [agent.communicate(timeout=LIMIT_S) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    return [subprocess.CompletedProcess(command, agent.returncode, *end) for agent, end in zip(agents, ends, strict=True)]


@pytest.mark.parametrize("ranks_each", [1, pytest.param(2, marks=pytest.mark.long)])
def test_two_nodes_learn_what_one_does(tmp_path: Path, ranks_each: int) -> None:
    recipe = write_recipe(tmp_path, micro_train_batch_size=4)
    nodes = on_two_nodes(recipe, "--output_dir", str(tmp_path / "two"), "--json", ranks_each=ranks_each)
    assert [node.returncode for node in nodes] == [0, 0], nodes[0].stderr + nodes[1].stderr
    summaries = [node.stdout.splitlines()[-1] for node in nodes if node.stdout.strip().endswith("}")]
    assert len(summaries) == 1 and json.loads(summaries[0])["world_size"] == 2 * ranks_each
    command = [sys.executable, "-m", MAIN, "train", "--config", str(recipe), "--nproc-per-node", str(2 * ranks_each)]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "one")], env=quiet_environment(), capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    two, one = curve(tmp_path / "two"), curve(tmp_path / "one")
    assert len(two) == 2 * len(COMPARED) and two == pytest.approx(one, rel=1e-6)


def test_a_rank_that_fails_on_the_second_node_ends_both(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(
        "import os\n\ndef reward(samples):\n    if os.environ['RANK'] == '1':\n        raise ZeroDivisionError('planted')\n"
        "    return [0.0 for _ in samples]\n",
        encoding="utf-8",
    )
    recipe = write_recipe(tmp_path, reward=[f"{tmp_path / 'planted.py'}:reward"])
    start = time.monotonic()
    nodes = on_two_nodes(recipe)
    assert all(node.returncode != 0 for node in nodes)
    assert any("ZeroDivisionError: planted" in node.stderr for node in nodes)
    assert time.monotonic() - start < 120


def of_slurm(folder: Path) -> dict[str, str]:
    """The environment of a job on two nodes, with stand-ins for Slurm's two commands in `folder`."""
    commands = folder / "bin"
    commands.mkdir()
    (commands / "scontrol").write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames node[1-2]" ] && echo 127.0.0.1 && echo 127.0.0.2\n')
    (commands / "srun").write_text('#!/bin/sh\nshift\n"$@" & first=$!\n"$@" & second=$!\nwait $first && wait $second\n')
    for file in commands.iterdir():
        file.chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": "7"}
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return quiet_environment() | slurm | {"PATH": path, "RDZV_PORT": str(free_port())}


@pytest.mark.long
def test_the_slurm_script_starts_one_agent_on_each_node(tmp_path: Path) -> None:
    """With stand-ins for Slurm's two commands: `srun` runs what it is given twice, as two nodes."""
    recipe = write_recipe(tmp_path)
    environment = of_slurm(tmp_path)
    done = subprocess.run(
        ["bash", str(SBATCH), str(recipe), "--max_steps", "1"], env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    assert len(curve(tmp_path / "run")) == len(COMPARED)
    nothing = subprocess.run(["bash", str(SBATCH)], env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert nothing.returncode != 0 and "usage: sbatch train.sbatch RECIPE.yaml" in nothing.stderr


@pytest.mark.long
def test_a_slurm_job_that_is_queued_again_goes_on_as_the_same_run(tmp_path: Path) -> None:
    """All of its processes are killed, as with a node that is lost; Slurm then starts the same script with a count of 1."""
    assert "#SBATCH --requeue\n" in SBATCH.read_text(encoding="utf-8")
    recipe = write_recipe(tmp_path, num_episodes=3, max_steps=4, save_every=2)
    environment, words = of_slurm(tmp_path), ["bash", str(SBATCH), str(recipe)]
    command = [
        sys.executable,
        "-m",
        MAIN,
        "train",
        "--config",
        str(recipe),
        "--nproc-per-node",
        "2",
        "--output_dir",
        str(tmp_path / "whole"),
    ]
    straight = subprocess.run(command, env=quiet_environment(), capture_output=True, text=True, timeout=LIMIT_S)
    assert straight.returncode == 0, straight.stderr

    run, deadline = tmp_path / "run", time.monotonic() + LIMIT_S
    job = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ((run / "metrics.jsonl").exists() and '"step": 3' in (run / "metrics.jsonl").read_text(encoding="utf-8")):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    for process in tree_of(job.pid):
        os.kill(process, signal.SIGKILL)
    job.wait()
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-2"]

    again = environment | {"SLURM_RESTART_COUNT": "1", "RDZV_PORT": str(free_port())}
    done = subprocess.run(words, env=again, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert "rollout 2 of 4" in done.stdout + done.stderr
    assert curve(run) == curve(tmp_path / "whole"), "bitwise, on the CPU"


def tree_of(process: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(one for child in children for one in tree_of(int(child)))]
