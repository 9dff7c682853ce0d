"""Many checks asked in one spawned world, each with a verdict of its own, also where one of them raises, dies or hangs."""

from __future__ import annotations

import faulthandler
import importlib.util
import pickle
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from lightrft.distributed.failure import LOST_PEER
from lightrft.testing.conformance import frozen, options, plain, rollouts, rows, saving, update, values, weights  # noqa: F401  # registered by import
from lightrft.testing.conformance.bench import StrategyBench, Subject
from lightrft.testing.conformance.integrity import complaint, replaced
from lightrft.testing.conformance.requirement import CHECKS, NotAsked, Refused
from lightrft.testing.limits import sentence
from lightrft.testing.parity import CASES, Measured, measure
from lightrft.testing.spmd import SpmdError, run_spmd

Kind = Literal["held", "failed", "blocked", "refused", "not asked"]

PARTS = ("plain", "values", "weights", "frozen", "update", "rows", "options", "saving", "rollouts")
"""From the plain to what builds on it."""

ORDER = {check.name: check for check in sorted(CHECKS.values(), key=lambda check: PARTS.index(check.part))}
"""Every check, in the order in which they run: what a check comes after stands before it."""

KIT = "the_kit_is_whole"
END = "it_ends_twice_over"
"""The last question in a world: none can come after it."""

GRACE_S = 3.0
"""How long ranks wait for one that is late in a check after another has failed in it."""


@dataclass(frozen=True)
class Outcome:
    """Of one check on one rank, or on all together; `text` says what failed, was refused, or why it was not asked.

    Of one that is blocked, `text` is the name of the check that failed, the first of those it builds on.
    """

    kind: Kind
    text: str = ""
    seconds: float = 0.0


def ask(subject: Subject, ranks: int, names: Sequence[str], *, timeout_s: float) -> dict[str, Outcome]:
    """The outcome of each of `CHECKS` that is named, over all ranks. A check that hangs is ended after `timeout_s`.

    After a check that a rank did not come back from, the others are asked in another world.
    """
    cuda = torch.cuda.is_available() and torch.cuda.device_count() >= ranks
    left, found = [*names, KIT, END], dict[str, Outcome]()
    while left:
        with tempfile.TemporaryDirectory(prefix="lightrft-conformance-") as name:
            folder, died = Path(name), ""
            failed = _roots(found)
            try:
                total_s = 60 + timeout_s * len(left)
                run_spmd(_run, ranks, subject, left, str(folder), _oracle(), timeout_s, failed, timeout_s=total_s, cuda=cuda)
            except SpmdError as error:
                died = str(error)
            for check in list(left):
                on_ranks = [_read(folder / f"{check}.{rank}") for rank in range(ranks)]
                if all(outcome is not None for outcome in on_ranks):
                    found[check] = _together([outcome for outcome in on_ranks if outcome is not None])
                    left.remove(check)
                elif died:
                    found[check] = Outcome("failed", _lost(folder, check, on_ranks, died, timeout_s))
                    left.remove(check)
                    break
            if died and not any(folder.glob("*.0")):  # it does not even start: the others would say the same
                found |= dict.fromkeys(left, Outcome("blocked", next(iter(found))))
                left = []
    return found


def _run(subject: Subject, names: Sequence[str], folder: str, oracle: str, timeout_s: float, failed: Mapping[str, str]) -> None:
    """On each rank: all checks, one after the other, all ranks in step. `failed` is what `_roots` gives of the worlds before."""
    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)  # bitwise requirements hold on a GPU, too
    expected: dict[str, Measured] = pickle.loads(Path(oracle).read_bytes())
    shared = Path(folder) / "files"
    shared.mkdir(exist_ok=True)
    bench = StrategyBench(subject, shared, expected)
    rank, world, roots = bench.rank, bench.world_size, dict(failed)
    for name in names:
        with (Path(folder) / f"{name}.{rank}.stack").open("w") as stack:
            faulthandler.dump_traceback_later(timeout_s, exit=True, file=stack)
            outcome = _one(bench, name, roots)
            faulthandler.cancel_dump_traceback_later()
        _write(Path(folder) / f"{name}.{rank}", outcome)
        _wait(Path(folder), name, world, GRACE_S if outcome.kind == "failed" else timeout_s + GRACE_S)
        on_ranks = [_read(Path(folder) / f"{name}.{other}") for other in range(world)]  # all are there: what is blocked is so on every rank
        roots |= _roots({name: _together([o for o in on_ranks if o is not None])})
        if outcome.kind == "failed":
            bench.forget()


def _roots(found: Mapping[str, Outcome]) -> dict[str, str]:
    """Of each check that failed, its name; of each that is blocked, the name of the one that failed."""
    return {name: name if o.kind == "failed" else o.text for name, o in found.items() if o.kind in ("failed", "blocked")}


def _one(bench: StrategyBench, name: str, failed: Mapping[str, str]) -> Outcome:
    start = time.monotonic()

    def outcome(kind: Kind, text: str = "") -> Outcome:
        return Outcome(kind, text, time.monotonic() - start)

    try:
        if name == KIT:
            names = replaced()
            return outcome("failed", complaint(names)) if names else outcome("held")
        if name == END:
            _end(bench)
            return outcome("held")
        check = CHECKS[name]
        if check.needs is not None and not bench.can(check.needs):
            options.refuses(bench, check.needs)
        if root := next((failed[plainer] for plainer in check.after if plainer in failed), ""):
            return outcome("blocked", root)
        check.run(bench)
        return outcome("held")
    except Refused as refused:
        return outcome("refused", str(refused))
    except NotAsked as reason:
        return outcome("not asked", str(reason))
    except AssertionError as error:
        return outcome("failed", str(error) or traceback.format_exc())
    except Exception as error:  # whatever a plugin raises is its failure
        return outcome("failed", f"{sentence(error)}\n{traceback.format_exc()}")


def _end(bench: StrategyBench) -> None:
    """Raises AssertionError where a second shutdown does harm, or a process group is left."""
    bench.strategy.shutdown()
    try:
        bench.strategy.shutdown()
    except Exception as error:
        raise AssertionError(f"shutdown raised {type(error).__name__} when it was called a second time: {error}") from error
    left = torch.distributed.is_available() and torch.distributed.is_initialized()
    assert not left, "after shutdown the process group is still there: _leave_world has to end what _join_world began"


def _wait(folder: Path, name: str, world: int, seconds: float) -> None:
    """Until every rank has come back from the check."""
    deadline = time.monotonic() + seconds
    while missing := [rank for rank in range(world) if not (folder / f"{name}.{rank}").exists()]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {missing[0]} did not come back from {name}")
        time.sleep(0.005)


def _together(on_ranks: list[Outcome]) -> Outcome:
    """The first failure's, with its rank; else that of rank 0."""
    seconds = max(outcome.seconds for outcome in on_ranks)
    failed = [(rank, outcome.text) for rank, outcome in enumerate(on_ranks) if outcome.kind == "failed"]
    if not failed:
        return Outcome(on_ranks[0].kind, on_ranks[0].text, seconds)
    failed.sort(key=lambda pair: any(sign in pair[1].lower() for sign in ("peererror", *LOST_PEER)))  # that another failed is no cause
    rank, text = failed[0]
    return Outcome("failed", f"rank {rank} of {len(on_ranks)}: {text}", seconds)


def _lost(folder: Path, check: str, on_ranks: list[Outcome | None], died: str, timeout_s: float) -> str:
    """In words: which ranks did not come back, where they were, and what the others had found."""
    late = [rank for rank, outcome in enumerate(on_ranks) if outcome is None]
    came = [f"rank {rank}: {o.kind}{': ' + o.text if o.text else ''}" for rank, o in enumerate(on_ranks) if o is not None]
    stacks = {rank: path.read_text() for rank in late if (path := folder / f"{check}.{rank}.stack").exists()}
    hung = [rank for rank in late if "Timeout" in stacks.get(rank, "")]
    dead = [rank for rank in late if rank not in hung and f"rank {rank} ended with exit code" in died]
    where = "".join(f"\nrank {rank} was in:\n{text}" for rank, text in stacks.items() if text)
    named = ", ".join(map(str, dead or hung or late))
    if not dead and (hung or came):
        head = f"rank {named} of {len(on_ranks)} hangs: it did not come back from {check} within {timeout_s:g} s"
        others = f"; the others did: {'; '.join(came)}" if came else "; no rank did"
        return f"{head}{others}{where or chr(10) + died}"
    return f"rank {named} of {len(on_ranks)} died in {check}:\n{died}"


def _write(path: Path, outcome: Outcome) -> None:
    temporary = path.with_suffix(f"{path.suffix}.tmp")
    temporary.write_bytes(pickle.dumps(outcome))
    temporary.rename(path)


def _read(path: Path) -> Outcome | None:
    if not path.exists():
        return None
    outcome: Outcome = pickle.loads(path.read_bytes())
    return outcome


@lru_cache(maxsize=1)
def _oracle() -> str:
    """A file with what `single` measures in each case of `parity`, on one rank."""
    cases = tuple(case for case in CASES if not case.lora or importlib.util.find_spec("peft"))
    [measured] = run_spmd(measure, 1, {"single": ({"strategy": "single"}, cases)})
    with tempfile.NamedTemporaryFile(prefix="lightrft-oracle-", delete=False) as file:
        file.write(pickle.dumps(measured["single"]))
    return file.name
