"""The rank that holds the others up: judged from the heartbeats of all, by rules that need no machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightrft.distributed.heartbeat import Beat


@dataclass(frozen=True, kw_only=True)
class Hang:
    """The ranks that hold the others up, the one to name first, and the sentence."""

    ranks: list[int]
    message: str


def judge(beats: Mapping[int, Beat], silent: Mapping[int, float], *, world_size: int) -> Hang | None:
    """`beats`: the last heartbeat of each rank; `silent`: seconds without one, of those whose time for it is over.

    A rank without a heartbeat is stopped, or holds Python's lock in foreign code. Else the others wait for the ranks that are in no
    collective, and of these for the ones that have begun the fewest; where all are in one, for those with the fewest, or it differs. One
    rank that is in a collective of its own, where at least two others agree, is named for it.
    None: nobody is over its limit yet, or not every rank has begun to beat. Ranks that have finished or failed are not looked at.
    """
    if len(beats) < world_size:
        return None
    beats = {rank: beat for rank, beat in beats.items() if beat.number >= 0}
    silent = {rank: seconds for rank, seconds in silent.items() if rank in beats}
    if silent:
        return Hang(ranks=sorted(silent), message="; ".join(_silent(beats[rank], silent[rank]) for rank in sorted(silent)))
    late = _late(beats)
    if not all(beat.limit_s and beat.still_s > beat.limit_s for beat in late):
        return None
    if hang := _alone(beats):
        return hang
    if len({beat.collective for beat in beats.values()}) > 1 and all(beat.collective for beat in beats.values()) and _level(beats):
        where = "; ".join(f"rank {beat.rank}: {beat.place}" for beat in beats.values())
        return Hang(ranks=sorted(beats), message=f"ranks wait in different collectives for {_seconds(late[0])}: {where}")
    if len(late) == len(beats) > 1:
        what = f"all ranks stand still for {_seconds(late[0])} in the same place: {late[0].place}; is the network between them up?"
        return Hang(ranks=[beat.rank for beat in late], message=what)
    return Hang(ranks=[beat.rank for beat in late], message="; ".join(_late_words(beat) for beat in late))


def _alone(beats: Mapping[int, Beat]) -> Hang | None:
    """The one rank that is in a collective which the others have not begun, or in another at the same place; they agree with one another.

    Where the others are in no collective, they may wait for the device, on which one of their own was started, or hang before it: both are
    told, and the rank that is alone comes first.
    """
    for rank, one in sorted(beats.items()):
        others = [beats[other] for other in sorted(beats) if other != rank]
        agree = len({(other.calls, other.collective) for other in others}) == 1
        if len(others) < 2 or not agree or not one.collective:
            continue
        ahead, in_another = one.calls > others[0].calls, one.calls == others[0].calls and one.collective != others[0].collective
        if not ahead and not (in_another and others[0].collective):
            continue
        names = ", ".join(str(other.rank) for other in others)
        told = f"rank {rank} waits for {_seconds(one)} in a collective that the others are not in: {one.place}"
        where = f"ranks {names}: {others[0].place}"
        if others[0].collective:
            return Hang(ranks=[rank], message=f"{told}; {where}")
        return Hang(ranks=[rank, *(other.rank for other in others)], message=f"{told}; or the others hang before it, {where}")
    return None


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
