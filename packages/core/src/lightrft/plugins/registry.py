"""The installed plugins. Discovery, errors with their remedies, loading on first use."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, Literal

import pluggy

from lightrft.errors import (
    PluginApiError,
    PluginBrokenError,
    PluginConflictError,
    PluginNotInstalledError,
    PluginRuntimeError,
    nearest,
)
from lightrft.plugins import hookspecs
from lightrft.plugins.api import problem_with_api, problem_with_requirement
from lightrft.plugins.known import KNOWN_EXTRAS, install_hint
from lightrft.plugins.runtime import problem_with
from lightrft.plugins.specs import ENTRY_POINT_GROUP, SPEC_TYPES, Capability, PluginSpec
from lightrft.plugins.targets import problem_with_target

State = Literal["ok", "broken", "other api", "no runtime", "conflict"]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """The distribution that an entry point comes from."""

    distribution: str
    version: str
    entry_point: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True, kw_only=True)
class PluginEntry:
    """One row of `lightrft plugins`. `spec` is None where the plugin's own module could not be imported."""

    provider: Provider
    spec: PluginSpec | None
    state: State = "ok"
    reason: str = ""
    error: BaseException | None = None

    @property
    def kind(self) -> str:
        return self.spec.kind if self.spec else "?"

    @property
    def name(self) -> str:
        return self.spec.name if self.spec else self.provider.entry_point


class Registry:
    """All plugins of one environment. Build it with `Registry.discover()`, or with `Registry(entries)` in a test."""

    def __init__(self, entries: Iterable[PluginEntry]) -> None:
        self._entries = _mark_conflicts(list(entries))

    @classmethod
    def discover(cls) -> Registry:
        """Reads the entry points of the group `lightrft.plugins`; a plugin that fails is kept with its reason."""
        found: list[PluginEntry] = []
        seen: set[str] = set()
        for distribution in distributions():
            rows = _entries_of_distribution(distribution)
            names = {row.provider.distribution.lower().replace("_", "-") for row in rows} - {"?"}
            if not names & seen:  # the first one on the path hides later copies, as for imports
                found += rows
            seen |= names
        return cls(found)

    def entries(self, kind: str | None = None) -> list[PluginEntry]:
        """Everything found, broken ones included, sorted by kind and name."""
        return sorted((e for e in self._entries if kind in (None, e.kind)), key=lambda e: (e.kind, e.name, str(e.provider)))

    def names(self, kind: str) -> list[str]:
        """The usable names of a kind."""
        return [e.name for e in self.entries(kind) if e.state == "ok"]

    def entry(self, kind: str, name: str) -> PluginEntry:
        """The usable entry of that name.

        Raises:
            PluginNotInstalledError, PluginBrokenError, PluginApiError, PluginRuntimeError, PluginConflictError: see `lightrft.errors`.
        """
        found = [e for e in self.entries(kind) if e.name == name]
        if not found:
            # A plugin whose module cannot be imported never told its names: it may be the one that is asked for.
            found = [e for e in self._entries if e.spec is None and e.provider.entry_point == name]
        if not found:
            raise PluginNotInstalledError(self._not_installed(kind, name))
        first = found[0]
        if first.state == "broken":
            raise PluginBrokenError(f"{kind} {name!r} of {first.provider} is installed but broken: {first.reason}") from first.error
        if first.state == "other api":
            raise PluginApiError(f"{kind} {name!r}: {first.reason}") from first.error
        if first.state == "no runtime":
            raise PluginRuntimeError(f"{kind} {name!r} of {first.provider} {first.reason}")
        if first.state == "conflict":
            raise PluginConflictError(f"{kind} {name!r}: {first.reason}")
        return first

    def spec(self, kind: str, name: str) -> Any:
        """The spec of a usable plugin (of the spec class of its kind). Raises as `entry`."""
        return self.entry(kind, name).spec

    def load(self, kind: str, name: str) -> Any:
        """Imports and returns the target.

        Raises:
            PluginBrokenError: as `entry`; or the import fails (chained), or the target is not what its kind asks for.
            PluginApiError: as `entry`; or the import fails, and its distribution requires another lightrft.
            PluginError: as `entry`.
        """
        entry = self.entry(kind, name)
        assert entry.spec is not None
        module, attribute = entry.spec.target.split(":")
        broken = f"{kind} {name!r} of {entry.provider} is installed but broken: {entry.spec.target}"
        try:
            target = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            other = problem_with_requirement(entry.provider.distribution)
            text = f"{broken}: {_one_line(error)}"
            raise (PluginApiError(f"{text}; {other}") if other else PluginBrokenError(text)) from error
        problem = problem_with_target(entry.spec, target)
        if problem:
            raise PluginBrokenError(f"{broken} {problem}")
        return target

    def having(self, kind: str, capability: Capability) -> list[str]:
        """The usable names of a kind that declare a capability."""
        return [e.name for e in self.entries(kind) if e.state == "ok" and e.spec and capability in e.spec.capabilities]

    def _not_installed(self, kind: str, name: str) -> str:
        hint = install_hint(kind, name)
        installed = ", ".join(self.names(kind)) or "none"
        if hint:
            return f"{kind} {name!r} is not installed: {hint} (installed: {installed})"
        known = [*self.names(kind), *(n for k, n in KNOWN_EXTRAS if k == kind)]
        silent = "".join(f"; {e.provider} is broken and may provide it: {e.reason}" for e in self._entries if e.spec is None)
        return f"unknown {kind} {name!r}{nearest(name, known)} (installed: {installed}; `lightrft plugins` lists all){silent}"


def entries_of(entry_point: EntryPoint) -> list[PluginEntry]:
    """The rows of one entry point: its specs, or one broken row that says why."""
    provider = _provider(entry_point.dist, entry_point.name)
    try:
        return [_entry_of(provider, spec) for spec in _specs_of(entry_point.load())]
    except (Exception, SystemExit) as error:  # a broken plugin is somebody else's code: it is shown, and breaks nobody
        return [_broken(provider, error)]


def _entries_of_distribution(distribution: Distribution) -> list[PluginEntry]:
    try:
        points = list(distribution.entry_points.select(group=ENTRY_POINT_GROUP))
    except Exception as error:  # a malformed entry_points.txt; of a plugin or of something that has nothing to do with us
        text = distribution.read_text("entry_points.txt") or ""
        return [_broken(_provider(distribution, "entry_points.txt"), error)] if ENTRY_POINT_GROUP in text else []
    return [row for point in points for row in entries_of(point)]


def _provider(distribution: Distribution | None, entry_point: str) -> Provider:
    try:
        name, version = (distribution.name, distribution.version) if distribution else ("?", "?")
    except Exception:  # a distribution without readable METADATA has neither
        name, version = "?", "?"
    return Provider(distribution=name or "?", version=version or "?", entry_point=entry_point)


def _broken(provider: Provider, error: BaseException) -> PluginEntry:
    other = problem_with_requirement(provider.distribution)
    if other:
        return PluginEntry(provider=provider, spec=None, state="other api", reason=f"{_one_line(error)}; {other}", error=error)
    return PluginEntry(provider=provider, spec=None, state="broken", reason=_one_line(error), error=error)


def _specs_of(module: object) -> list[PluginSpec]:
    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    manager.check_pending()
    specs: list[PluginSpec] = []
    for answer in manager.hook.lightrft_plugins():
        if not isinstance(answer, (list, tuple)):
            raise TypeError(f"its hook returned {answer!r}, which is not a list of specs")
        specs += answer
    for spec in specs:
        if not isinstance(spec, SPEC_TYPES):
            possible = ", ".join(kind.__name__ for kind in SPEC_TYPES)
            raise TypeError(f"its hook returned {spec!r} in its list, which is not a spec (possible: {possible})")
    if not specs:
        raise ValueError("it implements no `lightrft_plugins` hook that returns a spec")
    return specs


def _entry_of(provider: Provider, spec: PluginSpec) -> PluginEntry:
    other = problem_with_api(spec.api, distribution=provider.distribution, version=provider.version)
    if other:
        return PluginEntry(provider=provider, spec=spec, state="other api", reason=other)
    lacking = problem_with(spec.runtime, distribution=provider.distribution) if spec.runtime else ""
    return PluginEntry(provider=provider, spec=spec, state="no runtime" if lacking else "ok", reason=lacking)


def _mark_conflicts(entries: list[PluginEntry]) -> list[PluginEntry]:
    claims: dict[tuple[str, str], list[PluginEntry]] = {}
    for entry in entries:
        if entry.spec is not None:
            claims.setdefault((entry.kind, entry.name), []).append(entry)
    marked = []
    for entry in entries:
        same = claims.get((entry.kind, entry.name), [])
        if entry.spec is not None and len(same) > 1:
            reason = f"provided by {' and by '.join(str(e.provider) for e in same)}: uninstall all but one"
            entry = PluginEntry(provider=entry.provider, spec=entry.spec, state="conflict", reason=reason)
        marked.append(entry)
    return marked


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
