"""Whether core may use a plugin that was written for another API number. A range of numbers, and beyond it which side to upgrade."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from lightrft.version import __version__

API_VERSION = 1
"""Which contracts this lightrft has. Raised by every change after which a plugin that was right may be wrong: a hook or method that is
new without a default, gone, renamed, called with other arguments, or with another meaning; a field of a spec or setup that is gone;
a capability that means something else. Not raised by additions that have a default (a capability, an optional hook, a field, a kind): a
plugin that relies on one says so in its requirement, `lightrft>=`.
"""

OLDEST_API = 1
"""The oldest number that core still takes. A change that raises `API_VERSION` either lets plugins of the number before stay right as they
are (by code that looks at `spec.api`, and a test with an old plugin), or raises this one as well.
"""


def problem_with_api(api: int, *, distribution: str, version: str) -> str:
    """One line with the side to upgrade where the number is outside of the range, else an empty string."""
    if OLDEST_API <= api <= API_VERSION:
        return ""
    takes = str(API_VERSION) if OLDEST_API == API_VERSION else f"{OLDEST_API} to {API_VERSION}"
    side = _side(distribution, plugin_is_older=api < OLDEST_API)
    return f"{distribution} {version} is written for plugin API {api}, lightrft {__version__} takes {takes}: {side}"


def problem_with_requirement(distribution: str) -> str:
    """The same where the distribution's metadata requires another lightrft than this one; for a plugin that failed, as its cause.

    A plugin that uses what this lightrft does not have yet, or no longer has, fails before it can tell its number.
    """
    here = Version(__version__)
    for wanted in _required_lightrft(distribution):
        if not wanted.specifier.contains(here, prereleases=True):
            older = not any(part.operator in (">=", ">", "==", "~=") and here < Version(part.version) for part in wanted.specifier)
            return f"{distribution} requires lightrft {wanted.specifier}, this is {here}: {_side(distribution, plugin_is_older=older)}"
    return ""


def _side(distribution: str, *, plugin_is_older: bool) -> str:
    up, down = (distribution, "lightrft") if plugin_is_older else ("lightrft", distribution)
    return f"upgrade {up}, or install an older {down}: pip install -U {up}"


def _required_lightrft(distribution: str) -> list[Requirement]:
    try:
        wanted = [Requirement(line) for line in requires(distribution) or []]
    except (PackageNotFoundError, InvalidRequirement):
        return []
    return [requirement for requirement in wanted if requirement.name == "lightrft" and requirement.marker is None]
