"""The hooks that a plugin may implement. Each one returns specs and does nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from lightrft.plugins.specs import PluginSpec

PROJECT_NAME = "lightrft"
hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def lightrft_plugins() -> Sequence[PluginSpec]:  # type: ignore[empty-body]  # a hook specification has no body
    """The specs of everything that this distribution adds, of any kind."""
