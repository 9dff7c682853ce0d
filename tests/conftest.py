"""Environments with real installs in them, for the tests of the packages together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import thin_env
from lightrft.testing import preload

if not torch.cuda.is_available():  # DeepSpeed asks the card when it is imported, and a process that has done so cannot be forked
    preload("deepspeed.runtime.zero.stage3", "deepspeed.runtime.superoffload.superoffload_stage3", "torch._inductor.compile_fx")

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = {
    "lightrft": ROOT / "packages/core",
    "lightrft-backend-fsdp": ROOT / "packages/backend-fsdp",
    "lightrft-backend-deepspeed": ROOT / "packages/backend-deepspeed",
    "lightrft-acme": ROOT / "examples/plugin-template",
    "lightrft-ddp": ROOT / "examples/plugin-ddp",
    "lightrft-continuous-batching": ROOT / "examples/plugin-continuous-batching",
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each package, of the plugin template and of each example, built without a network."""
    built = {}
    for name, source in DISTRIBUTIONS.items():
        folder = tmp_path_factory.mktemp(name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True)
        (built[name],) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """environment(what, ...) makes a virtual environment with our dependencies and just these wheels or folders; returns its Python."""

    def make(*what: Path) -> Path:
        python = thin_env.make(tmp_path_factory.mktemp("environment") / "venv")
        thin_env.install(python, *what)
        return python

    return make
