"""Makes an environment like `thin_env`'s in which core's dependencies have the lowest versions that its pyproject allows.

torch stays the one that is there: its lowest build without CUDA is on no package index. uv resolves; the versions are printed.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import thin_env

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "packages/core/pyproject.toml"
KEPT = ("torch==", "triton==", "nvidia-", "cuda-", "setuptools==")
"""Not installed anew: torch and what comes with its build."""


def lowest(uv: Path) -> list[str]:
    """NAME==VERSION of all that core depends on: what it names itself as low as it may be, the rest as new as fits to that."""
    command = [uv, "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--no-header", "--no-annotate", PROJECT]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    found = [line.split(" ;")[0].strip() for line in done.stdout.splitlines() if "==" in line]
    return [line for line in found if not line.startswith(KEPT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--uv", type=Path, required=True)
    given = parser.parse_args()
    python = thin_env.make(given.folder.absolute(), without=("deepspeed",))
    thin_env.install(python, "--editable", ROOT / "packages/core")
    versions = lowest(given.uv)
    print(f"[setup] {given.folder}: {' '.join(versions)}", flush=True)
    subprocess.run(
        [str(given.uv), "pip", "install", "--quiet", "--compile-bytecode", "--no-deps", "--python", str(python), *versions], check=True
    )


if __name__ == "__main__":
    main()
