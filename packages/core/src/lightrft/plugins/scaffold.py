"""Begins a plugin: with a copy of the template that has one's own names in it."""

from __future__ import annotations

import keyword
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lightrft.errors import UserError
from lightrft.plugins.known import KNOWN_EXTRAS
from lightrft.plugins.registry import Registry

FORM = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
PREFIX = "lightrft-"
NOT_COPIED = {"__pycache__", "build", "dist"}


@dataclass(frozen=True)
class Names:
    """What a plugin named `lightrft-my-engine` is called: the distribution itself, its package `lightrft_my_engine`, its plugins
    `my-engine`, its classes `MyEngine...`.
    """

    distribution: str
    package: str
    plugin: str
    classes: str

    @classmethod
    def of(cls, name: str) -> Names:
        """All of them, from the distribution's name."""
        distribution = name.replace("_", "-")
        plugin = distribution.removeprefix(PREFIX)
        return cls(distribution, distribution.replace("-", "_"), plugin, "".join(part.capitalize() for part in plugin.split("-")))


TEMPLATE_NAMES = Names.of("lightrft-acme")


def new_plugin(name: str, *, parent: Path, registry: Registry) -> list[Path]:
    """Copies the template into the new folder `parent / name`, renamed, and returns its files, relative to `parent`.

    Raises:
        UserError: a name that cannot be one or is taken, a folder that is there already or cannot be written.
    """
    names = _checked(name, registry)
    folder = parent / name
    made: list[Path] = []
    try:
        folder.mkdir(parents=True)
        for source, path in _renamed_files(names):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_renamed(source.read_text(encoding="utf-8"), names), encoding="utf-8")
            made.append(target.relative_to(parent))
    except FileExistsError:
        raise UserError(f"{str(folder)!r} exists; choose another name, or another place with --dir") from None
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{str(folder)!r} cannot be written: {error.strerror}; choose another place with --dir") from error
    return made


def template_folder() -> Path:
    """Where the template is: inside the installed package, or beside its sources, where it is installed as editable.

    Raises:
        UserError: in neither.
    """
    package = Path(__file__).resolve().parent.parent
    places = [package / "plugin_template", package.parent.parent / "plugin_template"]
    for place in places:
        if (place / "pyproject.toml").is_file():
            return place
    looked = " and ".join(map(str, places))
    raise UserError(f"this lightrft has no plugin template, looked in {looked}: pip install --force-reinstall lightrft")


def _checked(name: str, registry: Registry) -> Names:
    if not FORM.fullmatch(name):
        raise UserError(f"{name!r} cannot be the name of a plugin; possible: lower-case letters, digits and single '-', from a letter on")
    names = Names.of(name)
    if keyword.iskeyword(names.package) or names.package in sys.stdlib_module_names:
        raise UserError(f"{name!r} would be the import package {names.package!r}, which is a word of Python; try 'lightrft-{name}'")
    found = find_spec(names.package)
    if found is not None and found.origin is not None:
        raise UserError(
            f"{name!r} would be the import package {names.package!r}, which is installed in {found.origin}; choose another name"
        )
    for entry in registry.entries():
        if entry.name == names.plugin:
            raise UserError(f"{entry.kind} {names.plugin!r} is there already, from {entry.provider}; choose another name")
    for kind, known in KNOWN_EXTRAS:
        if known == names.plugin:
            raise UserError(f"{kind} {known!r} is one of ours (lightrft[{known}]); choose another name")
    return names


def _renamed_files(names: Names) -> Iterator[tuple[Path, str]]:
    template = template_folder()
    for source in sorted(template.rglob("*")):
        path = source.relative_to(template)
        skipped = any(part in NOT_COPIED or part.startswith(".") or part.endswith(".egg-info") for part in path.parts)
        if source.is_file() and not skipped:
            yield source, _renamed(str(path), names)


def _renamed(text: str, names: Names) -> str:
    theirs, mine = TEMPLATE_NAMES, names
    pairs = [(getattr(theirs, field), getattr(mine, field)) for field in ("distribution", "package", "plugin", "classes")]
    return re.sub("|".join(re.escape(old) for old, _ in pairs), lambda match: dict(pairs)[match.group()], text)
