"""An installed distribution without an installation. A .dist-info folder on the path is all that discovery reads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PLUGIN = """
from lightrft.plugins import {spec}, hookimpl

@hookimpl
def lightrft_plugins():
    return [{spec}({arguments})]
"""

Install = Callable[..., str]


def write_distribution(
    site: Path, name: str, *, version: str = "1.0", entry_points: str | None = None, requires: str | None = None, **modules: str
) -> None:
    """One distribution with its modules; by default its entry point has the first module's name and value, and it requires nothing."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    required = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}", encoding="utf-8")
    if entry_points is None:
        first = next(iter(modules))
        entry_points = f"[lightrft.plugins]\n{first} = {first}\n"
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text, encoding="utf-8")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install("dist-name", module_name="source", version=..., entry_points=..., requires=...); each distribution lies in a folder of its
    own.
    """
    names: list[str] = []

    def do(name: str, *, version: str = "1.0", entry_points: str | None = None, requires: str | None = None, **modules: str) -> str:
        site = tmp_path / f"site-{name}-{version}"
        site.mkdir()
        write_distribution(site, name, version=version, entry_points=entry_points, requires=requires, **modules)
        monkeypatch.syspath_prepend(str(site))
        names.extend(modules)
        return str(site)

    yield do
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def plugin_source() -> Callable[..., str]:
    """The text of a plugin.py that returns one spec."""

    def text(spec: str = "RewardSpec", *, name: str = "acme", target: str = "acme_code:f", more: str = "") -> str:
        return PLUGIN.format(spec=spec, arguments=f"name={name!r}, target={target!r}{more and ', ' + more}")

    return text
