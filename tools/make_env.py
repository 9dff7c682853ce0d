"""For a machine with only Python. Makes the virtual environment and installs the workspace into it.

Standard library only, and syntax of Python 3.8, so that any `python3` can start it; the environment itself is made by the newest
Python that LightRFT can use.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
CANDIDATES = ("python3.14", "python3.13", "python3.12", "python3.11", "python3")
CORE_EXTRAS = "math,datasets,plot,vision,lora,tensorboard,wandb,testing"
PACKAGES = (
    f"packages/core[{CORE_EXTRAS}]",
    "packages/backend-fsdp",
    "packages/backend-deepspeed",
    "packages/engine-vllm",
    "packages/engine-sglang",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the environment to make or to bring up to date")
    folder = parser.parse_args().folder
    wheels = local_torch_wheels(find_links())
    python = folder / "bin" / "python"
    if not (folder / "bin" / "pip").exists():
        chosen = choose(interpreters(), wheels)
        print(f"[setup] {folder} with {chosen}", flush=True)
        run([chosen, "-m", "venv", str(folder)])
    if not (folder / "bin" / "uv").exists():
        run([str(python), "-m", "pip", "install", "--quiet", "uv"])
    install(folder, python, wheels)


def install(folder: Path, python: Path, wheels: list[Path]) -> None:
    command = [str(folder / "bin" / "uv"), "pip", "install", "--python", str(python), "--compile-bytecode", "--group", "pyproject.toml:dev"]
    fitting = [wheel for wheel in wheels if tag(version_of(str(python))) in wheel.name]
    if fitting:
        # The ordinary index would bring the CUDA build, of several GB. Naming the wheel's whole version, `+cpu` included, keeps to it.
        command += ["--find-links", str(fitting[-1].parent), f"torch=={fitting[-1].name.split('-')[1]}"]
        print(f"[setup] torch from {fitting[-1]}", flush=True)
    index = pip_setting("index-url")
    if index:
        command += ["--index-url", index]
    for package in PACKAGES:
        command += ["--editable", package]
    run(command, cwd=ROOT)


def interpreters() -> dict[str, tuple[int, int]]:
    """Every Python at hand that is new enough, newest first; `PYTHON` in the environment names the only one to try."""
    given = os.environ.get("PYTHON")
    found = {}
    for name in (given,) if given else CANDIDATES:
        path = shutil.which(name)
        version = version_of(path) if path else (0, 0)
        if path and version >= OLDEST:
            found[path] = version
    if not found:
        tried = given or ", ".join(CANDIDATES)
        needed = ".".join(map(str, OLDEST))
        sys.exit(f"[setup] LightRFT needs Python {needed} or later; tried: {tried}. Install one, or name it: make PYTHON=/path/to/python3")
    return found


def choose(found: dict[str, tuple[int, int]], wheels: list[Path]) -> str:
    """The newest one, but one that a local torch wheel fits goes first."""
    return max(found, key=lambda path: (any(tag(found[path]) in wheel.name for wheel in wheels), found[path]))


def version_of(python: str) -> tuple[int, int]:
    """(3, 11), or (0, 0) for something that does not run, such as a shim whose version is not installed."""
    asked = subprocess.run([python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False)
    parts = asked.stdout.split()
    return (int(parts[0]), int(parts[1])) if asked.returncode == 0 and len(parts) == 2 else (0, 0)


def tag(version: tuple[int, int]) -> str:
    return f"-cp{version[0]}{version[1]}-"


def find_links() -> list[str]:
    """The folders that pip is told to look for wheels in (its `find-links`, from its files or PIP_FIND_LINKS)."""
    return [entry for entry in pip_setting("find-links").split() if Path(entry).is_dir()]


def pip_setting(name: str) -> str:
    """A setting as pip sees it: the environment, then its files; empty where it has none, or where this Python has no pip."""
    given = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if given:
        return given
    asked = subprocess.run([sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else ""


def local_torch_wheels(folders: list[str]) -> list[Path]:
    """torch wheels of a CPU build, oldest version first."""
    found = [Path(path) for folder in folders for path in glob.glob(os.path.join(folder, "torch-*+cpu-*.whl"))]
    return sorted(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name.split("-")[1])])


def run(command: list[str], cwd: Path | None = None) -> None:
    """Runs a step; its own output says what failed, one line of ours says which step it was."""
    # DeepSpeed is a source distribution: without this it would compile its operators on machines that set DS_BUILD_OPS for other reasons.
    done = subprocess.run(command, cwd=cwd, check=False, env={**os.environ, "DS_BUILD_OPS": "0"})
    if done.returncode:
        sys.exit(f"[setup] failed with code {done.returncode}: {' '.join(command)}")


if __name__ == "__main__":
    main()
