"""The conformance kit on a strategy or an engine by name, and a report for an issue."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from lightrft.cli.doctor import examine
from lightrft.errors import UserError

SOURCE = """
from lightrft.testing.conformance import {kit}Conformance

class Test{kit}({kit}Conformance):
    {kind}_name = {name!r}
"""
RANKS = "    ranks = {ranks!r}\n"


def run_conformance(kind: str, name: str, *, ranks: int | None) -> dict[str, Any]:
    """Plain data: `plugin`, `environment`, `requirements` (one row for each test), `counts` by state, and `ok`.

    Raises:
        UserError: pytest is missing; the plugin cannot be had; or no verdict can be given: it declares nothing, nothing was asked of it, or
            the kit was changed while it ran.
    """
    if find_spec("pytest") is None:
        raise UserError("lightrft conformance runs on pytest, which is not installed: pip install 'lightrft[testing]'")
    from lightrft.plugins.registry import Registry
    from lightrft.testing.conformance.integrity import REPLACED
    from lightrft.testing.conformance.run import run_kit

    registry = Registry.discover()  # after the kit, which remembers what it is made of before a plugin is loaded
    entry = registry.entry(kind, name)
    assert entry.spec is not None
    asked = _ranks(entry.spec, ranks)
    registry.load(kind, name)  # what cannot be imported is one sentence, not one for each requirement
    source = SOURCE.format(kit=kind.capitalize(), kind=kind, name=name) + (RANKS.format(ranks=asked) if kind == "strategy" else "")
    verdicts, problems = run_kit(source)
    if problems or not any(v.state == "passed" for v in verdicts):
        raise UserError(f"{kind} {name!r} got no verdict: {' '.join(problems) or 'nothing was asked of it'}")
    changed = [v.message for v in verdicts if v.state == "failed" and REPLACED in v.message]
    if changed:
        raise UserError(f"{kind} {name!r} got no verdict: {' '.join(changed[0].split())}")
    counts = {state: sum(v.state == state for v in verdicts) for state in ("passed", "failed", "blocked", "refused", "not asked")}
    return {
        "plugin": {
            "kind": kind,
            "name": name,
            "provider": str(entry.provider),
            "api": entry.spec.api,
            "capabilities": sorted(entry.spec.capabilities),
            "ranks": list(asked),
        },
        "environment": _environment(registry),
        "requirements": [{k: v for k, v in asdict(verdict).items() if k != "kit"} for verdict in verdicts],
        "counts": counts,
        "seconds": sum(v.seconds for v in verdicts),
        "ok": not counts["failed"],
    }


def _ranks(spec: Any, ranks: int | None) -> Sequence[int]:
    from lightrft.plugins.specs import Capability
    from lightrft.testing.conformance.base import refuse_empty

    refuse_empty(spec)
    if spec.kind == "engine":
        if ranks and ranks > 1:
            raise UserError(f"--ranks {ranks}: an engine is tested alone, in one process; leave --ranks out")
        return (1,)
    several = Capability.MULTI_RANK in spec.capabilities
    if ranks and ranks > 1 and not several:
        raise UserError(f"--ranks {ranks}: strategy {spec.name!r} does not declare 'multi_rank'; it is tested on one rank")
    return (ranks,) if ranks else (1, 2) if several else (1,)


def _environment(registry: Any) -> dict[str, Any]:
    found = examine(registry)
    plugins = {f"{row['kind']} {row['name']}": row["library"] for row in found["plugins"] if row["library"]}
    return {
        "platform": platform.platform(),
        "python": found["python"],
        **{name: version for name, version in found["libraries"].items() if version},
        **plugins,
        "gpus": found["gpus"],
        "cpus": found["cpus"],
    }
