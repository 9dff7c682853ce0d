"""The rank that holds the others up: judged from the heartbeats of all, by rules that need no machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightrft.distributed.heartbeat import LEFT, Beat


@dataclass(frozen=True, kw_only=True)
class Hang:
    """The ranks that hold the others up, in rank order, and the sentence."""

    ranks: list[int]
    message: str


def judge(beats: Mapping[int, Beat], silent: Mapping[int, float], *, world_size: int) -> Hang | None:
    """`beats`: the last heartbeat of each rank; `silent`: seconds without one, of those whose time for it is over.

    A rank without a heartbeat is stopped, or holds Python's lock in foreign code. Else the others wait for the ranks that are in no
    collective, and of these for the ones that have begun the fewest; where all are in one, for those with the fewest, or it differs.
    None: nobody is over its limit yet, or not every rank has begun to beat. Ranks that have finished are no longer looked at.
    """
    if len(beats) < world_size:
        return None
    beats = {rank: beat for rank, beat in beats.items() if beat.number != LEFT}
    silent = {rank: seconds for rank, seconds in silent.items() if rank in beats}
    if silent:
        return Hang(ranks=sorted(silent), message="; ".join(_silent(beats[rank], silent[rank]) for rank in sorted(silent)))
    late = _late(beats)
    if not all(beat.limit_s and beat.still_s > beat.limit_s for beat in late):
        return None
    if len({beat.collective for beat in beats.values()}) > 1 and all(beat.collective for beat in beats.values()) and _level(beats):
        where = "; ".join(f"rank {beat.rank}: {beat.place}" for beat in beats.values())
        return Hang(ranks=sorted(beats), message=f"ranks wait in different collectives for {_seconds(late[0])}: {where}")
    if len(late) == len(beats) > 1:
        what = f"all ranks stand still for {_seconds(late[0])} in the same place: {late[0].place}; is the network between them up?"
        return Hang(ranks=[beat.rank for beat in late], message=what)
    return Hang(ranks=[beat.rank for beat in late], message="; ".join(_late_words(beat) for beat in late))


def _late(beats: Mapping[int, Beat]) -> list[Beat]:
    """Whom the others wait for: ranks outside of a collective, if there are any, and of those the ones that have begun the fewest."""
    outside = [beats[rank] for rank in sorted(beats) if not beats[rank].collective] or [beats[rank] for rank in sorted(beats)]
    fewest = min(beat.calls for beat in outside)
    return [beat for beat in outside if beat.calls == fewest]


def _level(beats: Mapping[int, Beat]) -> bool:
    return len({beat.calls for beat in beats.values()}) == 1


def _silent(beat: Beat, seconds: float) -> str:
    return (
        f"rank {beat.rank} (process {beat.process} on {beat.host}) has given no sign of life for {seconds:.0f} s in phase {beat.phase} "
        f"of step {beat.step}: stopped, or in code that keeps Python's lock; its last sign came from {beat.where}, {beat.inside}"
    )


def _late_words(beat: Beat) -> str:
    return f"rank {beat.rank} has not moved for {_seconds(beat)} (limit {beat.limit_s:.0f} s): {beat.place}"


def _seconds(beat: Beat) -> str:
    return f"{beat.still_s:.0f} s"
