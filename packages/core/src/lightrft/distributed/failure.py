"""Reports of ranks that fail or hang, and which of several is the first cause."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn

from lightrft.errors import HangError, LightRFTError, PeerError, UserError, see

FAILURE_DIR = "LIGHTRFT_FAILURE_DIR"
"""Environment variable with the folder in which the launcher looks for the ranks' reports."""

TRACEBACK = "LIGHTRFT_TRACEBACK"
"""Environment variable; 1 shows the traceback of user errors too."""

USER_ERROR_EXIT = 2
ERROR_EXIT = 1
HUNG_EXIT = 70
PEER_LINGER_S = 1.0
"""A rank that failed only because another did stays this long, so that the launcher does not end the other before it has reported."""

Kind = Literal["hung", "killed", "user", "error", "exited", "peer", "ended"]
ORDER: tuple[tuple[Kind, ...], ...] = (("hung",), ("killed",), ("user", "error"), ("exited",), ("peer",), ("ended",))
"""Causes first. `hung` is told by another rank, which then kills it. `killed` (by a signal that nobody here sends) and `exited` left no
report; `ended` was ended by the launcher.
"""

LOST_PEER = ("connection closed by peer", "connection reset by peer", "gloo/transport", "broken pipe", "socket closed")


@dataclass(frozen=True, kw_only=True)
class RankFailure:
    """One rank's end. `where` is the function that failed, `traceback` is empty where the rank left no report; `section` as of an error."""

    rank: int
    time_ns: int
    kind: Kind
    message: str
    where: str = ""
    traceback: str = ""
    section: str = LightRFTError.section

    @property
    def exit_code(self) -> int:
        """What the command exits with when this is the first cause."""
        return USER_ERROR_EXIT if self.kind == "user" else ERROR_EXIT

    def text(self, *, with_traceback: bool = False) -> str:
        """What the user reads: `error: ...` lines for a user error, else the rank, where it was, and its traceback; at its end,
        where the documentation says more.
        """
        return f"{self._text(with_traceback=with_traceback)} {see(self.section)}"

    def _text(self, *, with_traceback: bool) -> str:
        if self.kind == "user" and not with_traceback:
            return "\n".join(f"error: {line}" for line in self.message.splitlines())
        if self.kind == "hung":
            return f"the run hangs: {self.message}\n{self.traceback.rstrip()}"
        if not self.traceback:
            return f"rank {self.rank} {self.message}"
        return f"rank {self.rank} failed in {self.where}:\n{self.traceback.rstrip()}"


@contextmanager
def reporting_failures() -> Iterator[None]:
    """Around all that a rank does: an exception is reported and ends the process at once, even while other threads or collectives hang.

    The report goes to the launcher's folder, or without a launcher to stderr. The exit code is 2 for a user error, else 1.
    """
    try:
        yield
    except KeyboardInterrupt:
        leave(130)
    except BaseException as error:  # whatever it is, this process is over and has to say why
        failure = describe(error, rank=int(os.environ.get("RANK", "0")))
        _report(failure)
        if failure.kind == "peer":
            time.sleep(PEER_LINGER_S)
        leave(failure.exit_code)


def leave(code: int) -> NoReturn:
    """Ends this process now. No destructors: a process group whose peers are gone may wait in its own for ever."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def leave_hung(error: Exception, *, where: str, rank: int) -> NoReturn:
    """Ends this process from a thread beside the one that hangs: reports the error and where every other thread is."""
    message = f"{type(error).__name__}: {error}"
    text, section = f"{stacks()}{message}\n", _section(error)
    _report(RankFailure(rank=rank, time_ns=time.time_ns(), kind="error", message=message, where=where, traceback=text, section=section))
    leave(HUNG_EXIT)


def leave_lost(message: str, *, rank: int) -> NoReturn:
    """Ends this process from a thread beside the one that waits for ranks that cannot come any more; how they ended is told elsewhere."""
    _report(RankFailure(rank=rank, time_ns=time.time_ns(), kind="peer", message=message))
    time.sleep(PEER_LINGER_S)
    leave(ERROR_EXIT)


def report_hang(error: Exception, *, rank: int, told_by: int, stacks: str) -> None:
    """Reports for all ranks that `rank` holds them up, which it may not be able to say itself. The process goes on."""
    message = f"{error} (told by rank {told_by})"
    _report(RankFailure(rank=rank, time_ns=time.time_ns(), kind="hung", message=message, traceback=stacks, section=HangError.section))


def describe(error: BaseException, *, rank: int) -> RankFailure:
    """The report of an exception."""
    text = str(error) or type(error).__name__
    if isinstance(error, SystemExit):
        text = f"sys.exit({error.code!r}) was called in the run; code of a reward or plugin must raise an error instead"
    steps = _own_frames_off(error.__traceback__)
    return RankFailure(
        rank=rank,
        time_ns=time.time_ns(),
        kind=_kind(error),
        message=text if isinstance(error, (UserError, PeerError)) else f"{type(error).__name__}: {text}",
        where=_where(steps),
        traceback="".join(traceback.format_exception(type(error), error, steps)),
        section=_section(error),
    )


def read_failures(folder: Path) -> list[RankFailure]:
    """The reports that ranks left in the launcher's folder."""
    return [RankFailure(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("rank*.json"))]


def first_cause(failures: Sequence[RankFailure]) -> RankFailure:
    """The failure that the others follow from: the earliest of the most telling kind."""
    return min(failures, key=lambda f: (next(i for i, kinds in enumerate(ORDER) if f.kind in kinds), f.time_ns))


def _report(failure: RankFailure) -> None:
    folder = os.environ.get(FAILURE_DIR)
    if folder:
        path = Path(folder) / f"rank{failure.rank}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(failure)), encoding="utf-8")
        temporary.replace(path)
        return
    text = failure.message if failure.kind == "peer" else failure.text(with_traceback=os.environ.get(TRACEBACK) == "1")
    for line in text.splitlines():
        print(f"[rank {failure.rank}] {line}", file=sys.stderr)


def _kind(error: BaseException) -> Kind:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, PeerError) or (isinstance(link, RuntimeError) and any(sign in str(link).lower() for sign in LOST_PEER)):
            return "peer"
        if isinstance(link, UserError):
            return "user"
        link = link.__cause__
    return "error"


def _section(error: BaseException) -> str:
    """That of the first error of ours in the chain of causes."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, LightRFTError):
        link = link.__cause__
    return LightRFTError.section if link is None else link.section


def stacks() -> str:
    """The stacks of all threads but this one, the main thread's last."""
    main, names = threading.main_thread().ident, {thread.ident: thread.name for thread in threading.enumerate()}
    frames = [(ident, frame) for ident, frame in sys._current_frames().items() if ident != threading.get_ident()]
    frames.sort(key=lambda pair: pair[0] == main)
    return "".join(f"{names.get(i, i)}, most recent call last:\n{''.join(traceback.format_stack(frame))}" for i, frame in frames)


def _where(step: TracebackType | None) -> str:
    """The innermost function of LightRFT on the way to the error, else the innermost one."""
    found = last = ""
    while step is not None:
        code = step.tb_frame.f_code
        last = f"{code.co_name} ({Path(code.co_filename).name}:{step.tb_lineno})"
        if str(step.tb_frame.f_globals.get("__name__", "")).startswith("lightrft"):
            found = last
        step = step.tb_next
    return found or last


def _own_frames_off(step: TracebackType | None) -> TracebackType | None:
    """Without the frame of `reporting_failures` itself, which every report would begin with."""
    while step is not None and step.tb_frame.f_code.co_filename == __file__:
        step = step.tb_next
    return step
