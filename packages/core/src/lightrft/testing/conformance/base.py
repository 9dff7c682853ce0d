"""What the kits of strategies and engines have in common: the plugin by name, and what makes a verdict worth nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from lightrft.errors import UserError
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import PluginSpec
from lightrft.testing.conformance.integrity import complaint, replaced
from lightrft.testing.conformance.requirement import requirement


class KitError(UserError):
    """The kit cannot give a verdict: it was changed, names no plugin, or the plugin gives it nothing to ask."""


_KITS: set[type] = set()
"""The classes that are the kit; all others only name a plugin."""


class Conformance:
    """Base of both kits. A subclass sets the attributes of `WIRING`, and nothing else: what is overridden is not asked for."""

    kind: ClassVar[str]
    WIRING: ClassVar[frozenset[str]] = frozenset()
    registry: ClassVar[Callable[[], Registry]] = Registry.discover
    """Where the plugin is found. A module-level function; the default finds what is installed."""

    def __init_subclass__(cls, *, kit: bool = False) -> None:
        super().__init_subclass__()
        if kit:
            _KITS.add(cls)
            return
        kits = [base for base in cls.__mro__ if base in _KITS]
        asked = {name for base in kits for name in vars(base) if not (name.startswith("__") and name.endswith("__"))}
        others = [base for base in cls.__mro__ if base not in (*kits, object)]
        changed = sorted({name for base in others for name in vars(base)} & asked - cls.WIRING)
        if changed:
            raise KitError(
                f"{cls.__name__} overrides {', '.join(changed)} of the kit: a requirement that is overridden is not asked for. "
                f"It may set {', '.join(sorted(cls.WIRING))}; tests of its own have other names"
            )

    @classmethod
    def plugin_name(cls) -> str:
        """The name of the plugin.

        Raises:
            KitError: the class names none.
        """
        name = getattr(cls, f"{cls.kind}_name", None)
        if not name:
            raise KitError(f"{cls.__name__} names no plugin: nothing would be tested. Set {cls.kind}_name = '...' in it")
        return str(name)

    @classmethod
    def spec(cls) -> Any:
        """The plugin's spec. Raises as `Registry.entry`."""
        return cls.registry().spec(cls.kind, cls.plugin_name())

    @requirement("spec")
    def test_the_plugin_declares_what_it_can_do(self) -> None:
        """A spec with capabilities, each known to this version: what is not declared is only asked to be refused"""
        refuse_empty(type(self).spec())

    @requirement("spec")
    def test_nothing_replaced_the_kit(self) -> None:
        """The plugin changed neither the kit nor the public side of the contracts"""
        names = replaced()
        assert not names, complaint(names)


_KITS.add(Conformance)


def refuse_empty(spec: PluginSpec) -> None:
    """Raises KitError for a plugin that declares nothing."""
    if not spec.capabilities:
        raise KitError(
            f"{spec.kind} {spec.name!r} declares no capability: everything optional would only be asked to be refused, and a plugin that "
            f"can do nothing would pass. Name in its {type(spec).__name__} what it can do: capabilities=frozenset({{Capability....}})"
        )
