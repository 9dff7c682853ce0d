"""Whether the library that a plugin drives is installed, in a version that was tested. Reads metadata, imports nothing of it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from lightrft.plugins.specs import Runtime


def installed(runtime: Runtime) -> dict[str, str]:
    """The versions of those of its distributions that are installed."""
    found = {}
    for name in runtime.distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def problem_with(runtime: Runtime, *, distribution: str) -> str:
    """One line with the remedy, or an empty string. `distribution` is the plugin's, whose extra brings the library."""
    found = installed(runtime)
    wanted = f"{' or '.join(runtime.distributions)} {runtime.versions}"
    if not found:
        return f"needs {wanted}, which is not installed: pip install '{distribution}[{runtime.extra}]'"
    versions = SpecifierSet(runtime.versions)
    # `+cpu` and the like say where a build is from, not what it can do.
    if any(versions.contains(Version(Version(v).public), prereleases=True) for v in found.values()):
        return ""
    there = ", ".join(f"{name} {found[name]}" for name in found)
    return f"needs {wanted}, found {there}: pip install '{distribution}[{runtime.extra}]'"
