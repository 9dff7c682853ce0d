"""Makes, within seconds, an environment that has our dependencies but none of our packages.

A new virtual environment whose path leads to a folder of links to everything that this Python has installed, except LightRFT's own
distributions and whatever was installed as editable. Nothing is downloaded, nothing is copied; but for `--extras`, whose libraries an index
brings into the new environment alone: some of them want other versions than ours.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

OURS = ("lightrft", "__editable__", "_editable_impl_", "__pycache__")


def make(folder: Path, *, without: Sequence[str] = ()) -> Path:
    """Makes (or makes anew) the environment, also without what begins with these names, and returns its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    links = folder / "dependencies"
    links.mkdir()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            if not entry.name.startswith((*OURS, *without)) and entry.suffix != ".pth" and not (links / entry.name).exists():
                (links / entry.name).symlink_to(entry)
    asked = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    (Path(asked.stdout.strip()) / "dependencies.pth").write_text(f"{links}\n", encoding="utf-8")
    return python


def install(python: Path, *what: str | Path) -> None:
    """pip-installs wheels or source folders into such an environment: no index, no dependencies, the build backend that is there."""
    command = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*map(str, command), *map(str, what)], check=True)


def install_extras(python: Path, project: Path, extras: Sequence[str]) -> None:
    """What these extras of a project name, from the index that uv knows."""
    named = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    lines = [line for extra in extras for line in named[extra]]
    subprocess.run([Path(sys.executable).parent / "uv", "pip", "install", "--quiet", "--python", python, *lines], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--editable", nargs="*", default=[], help="source folders to install as editable")
    parser.add_argument("--without", nargs="*", default=[], help="leave these out as well")
    parser.add_argument("--extras", nargs="*", default=[], help="extras of the first of the source folders, from an index")
    given = parser.parse_args()
    python = make(given.folder.absolute(), without=given.without)
    for source in given.editable:
        install(python, "--editable", source)
    if given.extras:
        install_extras(python, Path(given.editable[0]), given.extras)


if __name__ == "__main__":
    main()
