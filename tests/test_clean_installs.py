"""Real installations: new environments into which a package index brings what our wheels ask for, at its newest and as low as they allow,
and three steps of the demo in each. Needs a network, or an index in the settings of pip and uv; torch's build is the one that is there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import make_env

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"lightrft": "packages/core", "fsdp": "packages/backend-fsdp", "deepspeed": "packages/backend-deepspeed"}
UV = Path(sys.executable).parent / "uv"
DEMO = ["--max_steps", "3", "--sft_steps", "2", "--scratch_layers", "1", "--scratch_hidden", "64", "--scratch_heads", "2"]
DEMO += ["--scratch_kv_heads", "2", "--rollout_batch_size", "4", "--n_samples_per_prompt", "4", "--train_batch_size", "16"]
DEMO += ["--micro_train_batch_size", "4", "--max_eval_samples", "4", "--eval_every", "0", "--nproc-per-node", "1", "--json"]


@pytest.fixture(scope="module")
def dist(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheels` leaves: one folder of all wheels."""
    folder = tmp_path_factory.mktemp("dist")
    for wheel in wheels.values():
        shutil.copy(wheel, folder)
    return folder


def named_by(package: str, extras: list[str]) -> list[str]:
    """What a package and these extras of it name themselves, but for our own packages."""
    project = tomllib.loads((ROOT / FOLDERS[package] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    found = [*project["dependencies"], *(line for extra in extras for line in optional.get(extra, []))]
    return [line for line in found if not line.startswith(("lightrft", "torch>"))]


@pytest.mark.long
@pytest.mark.parametrize("resolution", ["lowest-direct", "highest"])
@pytest.mark.parametrize(
    ("extras", "plugins", "strategy"),
    [
        ([], [], "single"),
        (["fsdp"], [], "fsdp"),
        (["deepspeed", "math", "plot"], [], "deepspeed"),
        ([], ["lightrft-acme"], "single"),
    ],
    ids=["core", "fsdp", "deepspeed-math-plot", "plugin"],
)
def test_three_steps_after_an_installation(
    extras: list[str], plugins: list[str], strategy: str, resolution: str, dist: Path, tmp_path: Path
) -> None:
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    asked = [f"lightrft[{','.join(extras)}]>=0.2" if extras else "lightrft>=0.2", *plugins, f"torch=={torch.__version__}"]
    if resolution != "highest":
        asked += [line for package in ["lightrft", *extras] if package in FOLDERS for line in named_by(package, extras)]
    places = [word for folder in (dist, *make_env.find_links()) for word in ("--find-links", folder)]
    command = [UV, "pip", "install", "--quiet", "--python", python, "--resolution", resolution, *places, *asked]
    installed = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    versions = subprocess.run([UV, "pip", "freeze", "--python", python], capture_output=True, text=True, check=True).stdout
    print(" ".join(versions.split()))
    done = subprocess.run([python.parent / "lightrft", "demo", "--strategy", strategy, *DEMO], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, versions + done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 3
    listed = subprocess.run([python.parent / "lightrft", "plugins"], capture_output=True, text=True)
    assert listed.returncode == 0 and "broken" not in listed.stdout
    assert all(plugin in " ".join(listed.stdout.split()) for plugin in plugins)
