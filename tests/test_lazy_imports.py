"""What only reads settings and lists plugins stays free of torch, and so quick."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lightrft.testing.tiny import tiny_model_folder

HEAVY = ("torch", "deepspeed", "transformers", "numpy", "pyarrow", "datasets", "matplotlib")
REPORT = f"import sys, json; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"


def heavy_after(code: str) -> list[str]:
    """Which heavy modules a fresh interpreter holds after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{REPORT}"], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"}
    )
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize(
    "module",
    [
        "lightrft",
        "lightrft.plugins",
        "lightrft.config",
        "lightrft.utils",
        "lightrft.trainer.script",
        "lightrft.strategy",
        "lightrft_fsdp",
        "lightrft_fsdp.plugin",
        "lightrft_deepspeed",
        "lightrft_deepspeed.plugin",
        "lightrft.cli.main",
    ],
)
def test_importing_it_loads_nothing_heavy(module):
    assert heavy_after(f"import {module}") == []


def test_discovery_loads_nothing_heavy():
    assert (
        heavy_after(
            "from lightrft.plugins import Registry\nassert Registry.discover().names('strategy') == ['deepspeed', 'fsdp', 'single']"
        )
        == []
    )


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["plugins", "--json"], ["train", "--help"]])
def test_a_command_that_only_prints_loads_nothing_heavy(words):
    code = f"""
import sys
from lightrft.cli.main import run
sys.argv = ['lightrft', *{words!r}]
try:
    run()
except SystemExit as done:
    assert not done.code, done.code
"""
    assert heavy_after(code) == []


def test_the_probe_sees_what_is_loaded():
    assert "torch" in heavy_after("import lightrft.strategy.strategy_base")


def test_a_model_is_opened_without_importing_the_other_families(tmp_path):
    tiny_model_folder(tmp_path)
    code = f"""
import json, sys, torch
from lightrft.models.load import open_causal_lm
open_causal_lm({str(tmp_path)!r}, dtype=torch.float32)
print(json.dumps([name for name in sys.modules if name.startswith('transformers.models.') and name.count('.') == 2]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    families = json.loads(done.stdout.splitlines()[-1])
    assert "transformers.models.qwen3" in families and len(families) < 20, families
