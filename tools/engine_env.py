"""Makes an environment in which an engine really runs, without a GPU. The engines pin clashing versions: each has its own.

    tools/engine_env.py vllm .venv-vllm

What the engine needs on a CPU stands in packages/engine-NAME/cpu/: requirements.txt, overrides.txt, and where there is one a folder
shim/, a distribution that stands in for what only a GPU has. tools/cpu-shim stands in for torchvision's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from make_env import ROOT, choose, find_links, interpreters, local_torch_wheels, pip_setting, run, tag, version_of

CORE_EXTRAS = "plot,lora,testing"
BACKENDS = ("packages/backend-fsdp", "packages/backend-deepspeed")
NEWEST = (3, 12)
"""Neither engine has wheels for a later Python yet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=sorted(p.parent.name.removeprefix("engine-") for p in ROOT.glob("packages/engine-*/cpu")))
    parser.add_argument("folder", type=Path, help="the environment to make or to bring up to date")
    given = parser.parse_args()
    wheels = local_torch_wheels(find_links())
    python = given.folder / "bin" / "python"
    if not python.exists():
        usable = {path: version for path, version in interpreters().items() if version <= NEWEST}
        if not usable:
            sys.exit(f"[setup] {given.engine} needs Python 3.11 or 3.12; name one: make PYTHON=/path/to/python3.12")
        chosen = choose(usable, wheels)
        print(f"[setup] {given.folder} with {chosen}", flush=True)
        run([chosen, "-m", "venv", str(given.folder)])
    if not (given.folder / "bin" / "uv").exists():
        run([str(python), "-m", "pip", "install", "--quiet", "uv"])
    run(command(given.engine, given.folder, python, wheels), cwd=ROOT)


def command(engine: str, folder: Path, python: Path, wheels: list[Path]) -> list[str]:
    cpu = Path("packages") / f"engine-{engine}" / "cpu"
    words = [str((folder / "bin" / "uv").absolute()), "pip", "install", "--python", str(python.absolute()), "--compile-bytecode", "--quiet"]
    words += ["--overrides", str(cpu / "overrides.txt"), "--requirements", str(cpu / "requirements.txt")]
    fitting = [wheel for wheel in wheels if tag(version_of(str(python))) in wheel.name]
    if fitting:  # see make_env.py
        words += ["--find-links", str(fitting[-1].parent), f"torch=={fitting[-1].name.split('-')[1]}"]
    index = pip_setting("index-url")
    if index:
        words += ["--index-url", index]
    words += [f"./{shim}" for shim in (Path("tools", "cpu-shim"), cpu / "shim") if (ROOT / shim).is_dir()]
    for package in (f"packages/core[{CORE_EXTRAS}]", *BACKENDS, f"packages/engine-{engine}"):
        words += ["--editable", package]
    return words


if __name__ == "__main__":
    main()
