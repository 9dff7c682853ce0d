"""Collects what must travel to a GPU machine that reaches no package index. Our own wheels, and those of our needs that it lacks.

`make gpu-wheels` fills `.build/gpu`. On the GPU machine, from the repository's root, `make gpu-test` installs them into a folder of their
own, beside the torch and transformers that are there, and runs the tests marked `gpu`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("packages/core", "packages/backend-fsdp", "packages/backend-deepspeed", "packages/engine-vllm")
MISSING = ("annotated-types", "typing-inspection", "peft", "einops", "hjson", "msgpack", "ninja", "nvidia-ml-py", "py-cpuinfo")
"""Wheels of our needs, beside pydantic, that a machine set up for torch and transformers usually lacks; most are DeepSpeed's."""

COMPARED = ("trl==1.16.*", "datasets", "dill", "multiprocess")
"""What `benchmarks/vs_trl.py` compares with, and what that needs."""

SOURCE = ("deepspeed",)
"""Published as source only; the wheel is the same for every machine, as long as it compiles nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the wheels go")
    parser.add_argument("--python", default="3.12", help="the GPU machine's Python")
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    for package in PACKAGES:
        pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(given.folder), str(ROOT / package))
    platform = ["--only-binary=:all:", "--python-version", given.python]
    platform += [word for tag in ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64") for word in ("--platform", tag)]
    for name in SOURCE:
        pip("wheel", "--no-deps", "--wheel-dir", str(given.folder), f"{name}=={version(name)}")
    exact = [f"{name}=={version(name)}" for name in ("pydantic", "pydantic-core")]  # the two halves fit in pairs only
    for name in (*MISSING, *COMPARED, *exact):
        pip("download", "--no-deps", *platform, "--dest", str(given.folder), name)
    print("\n".join(sorted(path.name for path in given.folder.iterdir())))


def pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words, "--quiet"], check=True, env={**os.environ, "DS_BUILD_OPS": "0"})


if __name__ == "__main__":
    main()
