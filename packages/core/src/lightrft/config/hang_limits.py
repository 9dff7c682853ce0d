"""How long a rank may stand still in each phase of a run before the run is ended; the settings of the watchdog, read. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lightrft.config.schema import Config
from lightrft.errors import ConfigError, nearest

WATCHED = ("start", "load", "rollout", "reward", "logprob", "advantage", "update", "sync", "evaluate", "save", "finish")
"""`start`: until the first step; `load`: a checkpoint; `finish`: the final model."""

GENERATES = ("rollout", "evaluate")
"""Their next call may be as long as the longest completions, whatever the last ones were: their limit does not follow the past."""

LEARNT_AFTER, TIMES_THE_LONGEST, AT_LEAST_S = 3, 20.0, 300.0


@dataclass(frozen=True, kw_only=True)
class HangLimits:
    """Seconds. `default` holds where `chosen` has nothing and the phase has no past yet; 0 is no limit. `silence`: without a heartbeat."""

    default: float
    silence: float
    chosen: Mapping[str, float] = field(default_factory=dict)

    def of(self, phase: str, *, visits: int = 0, longest: float = 0.0) -> float:
        """The limit of a phase that was entered `visits` times before and stood still for `longest` seconds at most."""
        if phase in self.chosen:
            return self.chosen[phase]
        if phase in GENERATES or visits < LEARNT_AFTER:
            return self.default
        return min(self.default, max(AT_LEAST_S, TIMES_THE_LONGEST * longest))

    @property
    def largest(self) -> float:
        """Of all phases."""
        return max([self.default, self.silence, *self.chosen.values()])


def hang_limits(config: Config) -> HangLimits:
    """The limits of the settings. Raises ConfigError as `hang_limit_problems`."""
    if problems := list(hang_limit_problems(config)):
        raise ConfigError(problems)
    chosen = {name: float(seconds) for name, _, seconds in (one.partition("=") for one in config.phase_timeouts)}
    return HangLimits(default=config.hang_timeout_s, silence=config.heartbeat_timeout_s, chosen=chosen)


def hang_limit_problems(config: Config) -> Iterator[str]:
    """One line for each entry of `phase_timeouts` that is none."""
    for one in config.phase_timeouts:
        name, _, seconds = one.partition("=")
        if name not in WATCHED:
            yield f"phase_timeouts={one!r}: no phase {name!r}{nearest(name, WATCHED)} (phases: {', '.join(WATCHED)})"
        elif not seconds.replace(".", "", 1).isdecimal() or not seconds.isascii():
            yield f"phase_timeouts={one!r}: {seconds!r} is no number of seconds; the form is PHASE=SECONDS, 0 for no limit"
        elif not config.hang_timeout_s:
            yield f"phase_timeouts={one!r} has no effect with hang_timeout_s=0, which ends the watch; leave one of them out"
