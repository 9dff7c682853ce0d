"""The import rules of pyproject.toml hold, and each of them catches an offender."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
NAMES = {contract["id"]: contract["name"] for contract in CONTRACTS}
SOURCES = [*sorted(ROOT.glob("packages/*/src")), *sorted(ROOT.glob("examples/plugin-*/src"))]

PACKAGES = sorted(package.name for source in SOURCES for package in source.iterdir() if package.is_dir())
LIBRARY = {"lightrft_deepspeed": "deepspeed", "lightrft_vllm": "vllm", "lightrft_sglang": "sglang"}
"""What each plugin drives, and nobody else may import."""

BELOW = {
    "errors",
    "types",
    "version",
    "plugins",
    "config",
    "utils",
    "distributed",
    "observe",
    "weights",
    "batch",
    "engine",
    "rollout",
    "strategy",
}
"""Floors 0 to 5, which a plugin may know."""

OFFENDERS = [
    ("floors", "lightrft/types.py", "import lightrft.plugins.specs"),
    ("floors", "lightrft/errors.py", "import lightrft.types"),
    ("floors", "lightrft/plugins/specs.py", "import lightrft.config.schema"),
    ("floors", "lightrft/config/load.py", "import lightrft.distributed.world"),
    ("floors", "lightrft/distributed/world.py", "import lightrft.engine.base"),
    ("floors", "lightrft/engine/base.py", "import lightrft.strategy.factory"),
    ("floors", "lightrft/strategy/factory.py", "import lightrft.models"),
    ("floors", "lightrft/models/__init__.py", "import lightrft.data"),
    ("floors", "lightrft/data/__init__.py", "import lightrft.rewards"),
    ("floors", "lightrft/rewards/__init__.py", "import lightrft.algorithms"),
    ("floors", "lightrft/algorithms/__init__.py", "import lightrft.models"),
    ("floors", "lightrft/algorithms/__init__.py", "import lightrft.experience"),
    ("floors", "lightrft/experience/__init__.py", "import lightrft.trainer"),
    ("floors", "lightrft/trainer/__init__.py", "import lightrft.demo"),
    ("floors", "lightrft/demo/__init__.py", "import lightrft.cli"),
    ("floors", "lightrft/storey.py", "x = 1"),  # a new room has to find its floor
    ("testing", "lightrft/cli/__init__.py", "import lightrft.testing"),
    ("testing", "lightrft/types.py", "def f():\n    import lightrft.testing"),
    ("testing", "lightrft_fsdp/__init__.py", "import lightrft.testing"),
    ("core-knows-no-plugin", "lightrft/strategy/factory.py", "import lightrft_fsdp"),
    ("core-knows-no-plugin", "lightrft/engine/base.py", "import vllm"),
    ("core-knows-no-plugin", "lightrft/engine/base.py", "import sglang.srt"),
    ("core-knows-no-plugin", "lightrft/testing/__init__.py", "def f():\n    import deepspeed"),
    *[
        ("plugins-stay-below", "lightrft_fsdp/__init__.py", f"import lightrft.{room}")
        for room in ("models", "algorithms", "rewards", "data", "experience", "trainer", "demo", "cli")
    ],
    ("fsdp-knows-no-other", "lightrft_fsdp/__init__.py", "import deepspeed"),
    ("fsdp-knows-no-other", "lightrft_fsdp/__init__.py", "import vllm"),
    ("core-knows-no-plugin", "lightrft/strategy/factory.py", "import lightrft_deepspeed"),
    ("plugins-stay-below", "lightrft_deepspeed/plugin.py", "import lightrft.trainer"),
    ("deepspeed-knows-no-other", "lightrft_deepspeed/__init__.py", "import lightrft_fsdp"),
    ("core-knows-no-plugin", "lightrft/rollout/setup.py", "import lightrft_vllm"),
    ("core-knows-no-plugin", "lightrft/rollout/setup.py", "import lightrft_sglang"),
    ("plugins-stay-below", "lightrft_vllm/engine.py", "import lightrft.experience"),
    ("plugins-stay-below", "lightrft_sglang/engine.py", "import lightrft.experience"),
    ("vllm-knows-no-other", "lightrft_vllm/engine.py", "import sglang"),
    ("sglang-knows-no-other", "lightrft_sglang/engine.py", "import vllm"),
    ("core-knows-no-plugin", "lightrft/plugins/scaffold.py", "import lightrft_acme"),
    ("testing", "lightrft_acme/strategy.py", "import lightrft.testing"),
    ("template-knows-contracts-only", "lightrft_acme/strategy.py", "import lightrft.algorithms.inputs"),
    ("template-knows-contracts-only", "lightrft_acme/loss.py", "import lightrft.algorithms.kl"),
    ("template-knows-contracts-only", "lightrft_acme/logger.py", "import lightrft.trainer.spmd_ppo"),
    ("template-knows-no-other", "lightrft_acme/strategy.py", "import deepspeed"),
    ("template-knows-no-other", "lightrft_ddp/strategy.py", "import lightrft_fsdp"),
    ("plugins-know-no-other", "lightrft_continuous/engine.py", "import lightrft_ddp"),
    ("template-knows-contracts-only", "lightrft_continuous/engine.py", "import lightrft.models.load"),
    ("pure-algorithms", "lightrft/algorithms/__init__.py", "import lightrft.config.schema"),
    ("pure-algorithms", "lightrft/algorithms/__init__.py", "import lightrft.distributed.collectives"),
    ("no-torch-below", "lightrft/types.py", "import torch"),
    ("no-torch-below", "lightrft/plugins/registry.py", "def f():\n    import torch.distributed"),
    ("no-torch-below", "lightrft/config/schema.py", "import transformers"),
]


@pytest.fixture
def sources(tmp_path) -> Path:
    """A copy of the packages' sources with the same contracts, to plant something in."""
    for source in SOURCES:
        shutil.copytree(source, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def report(folder: Path) -> str:
    """What lint-imports says in a folder; every contract is in it, as kept or as broken."""
    program = (
        "import sys; sys.argv = ['lint-imports', '--no-cache']; from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stdout + done.stderr
    assert all(f"{name} BROKEN" in text or f"{name} KEPT" in text for name in NAMES.values()), text
    assert (done.returncode == 0) == (" BROKEN" not in text)
    return text


def broken_contracts(folder: Path) -> set[str]:
    """The names of the contracts that lint-imports reports as broken."""
    text = report(folder)
    return {name for name in NAMES.values() if f"{name} BROKEN" in text}


def plant(folder: Path, file: str, line: str) -> None:
    path = folder / file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{text}\n{line}\n", encoding="utf-8")


def test_the_rules_hold(sources):
    assert broken_contracts(sources) == set()


@pytest.mark.parametrize(("contract", "file", "line"), OFFENDERS)
def test_a_rule_catches_an_offender(sources, contract, file, line):
    plant(sources, file, line)
    assert NAMES[contract] in broken_contracts(sources)


def test_every_rule_has_an_offender():
    assert {contract for contract, _, _ in OFFENDERS} == set(NAMES)


def test_every_package_is_under_the_rules():
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert sorted(linter["root_packages"]) == PACKAGES


def forbidden_imports() -> dict[str, list[str]]:
    """For each package what it may not import, by what the rules are for and not by how they are written: a new one is in it at once."""
    rooms = {path.stem for path in (ROOT / "packages/core/src/lightrft").iterdir() if path.is_dir() or path.suffix == ".py"}
    above = sorted(f"lightrft.{room}" for room in rooms - BELOW if not room.startswith(("_", ".")))
    plugins = [package for package in PACKAGES if package != "lightrft"]
    asked = {"lightrft": [*plugins, *LIBRARY.values()]}
    for plugin in plugins:
        others = [other for other in plugins if other != plugin]
        asked[plugin] = [*above, *others, *(library for package, library in LIBRARY.items() if package != plugin)]
    return asked


def test_each_package_is_kept_from_everything_above_and_beside_it(sources):
    asked = forbidden_imports()
    for package, modules in asked.items():
        room = f"{package}/strategy" if package == "lightrft" else package
        plant(sources, f"{room}/planted.py", "\n".join(f"import {module}" for module in modules))
    text = report(sources)
    planted = [
        (f"{package}.strategy" if package == "lightrft" else package, module) for package, modules in asked.items() for module in modules
    ]
    assert len(planted) > 70
    assert [(package, module) for package, module in planted if f"{package}.planted -> {module} (l." not in text] == []


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_each_room_without_torch_is_kept_from_it(sources, library):
    rooms = {"errors": "errors", "types": "types", "plugins": "plugins.planted", "config": "config.planted", "utils": "utils.planted"}
    for module in rooms.values():
        plant(sources, f"lightrft/{module.replace('.', '/')}.py", f"import {library}")
    text = report(sources)
    assert [module for module in rooms.values() if f"lightrft.{module} -> {library} (l." not in text] == []


# The import linter sees torch as one thing; what of it an algorithm uses is read from its source.


def collective_calls(text: str) -> list[str]:
    """Every mention of torch.distributed in a source."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("torch.distributed")]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module for alias in node.names if f"{node.module}.{alias.name}".startswith("torch.distributed")]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            found.append("torch.distributed")
    return found


def test_algorithms_have_no_collectives():
    files = sorted((ROOT / "packages/core/src/lightrft/algorithms").rglob("*.py"))
    assert files
    assert {file.name: collective_calls(file.read_text(encoding="utf-8")) for file in files} == {file.name: [] for file in files}


@pytest.mark.parametrize(
    "text",
    [
        "import torch.distributed as dist",
        "import torch.distributed.nn",
        "from torch import distributed",
        "from torch.distributed import all_reduce",
        "import torch\ntorch.distributed.barrier()",
    ],
)
def test_a_collective_would_be_found(text):
    assert collective_calls(text)
