"""The process of a program whose output is wanted: it is read from 0, and what it prints, errors included, goes to 1."""

from __future__ import annotations

import io
import os
import sys
import types

NAME = "program.py"


def main() -> None:
    """An exception is told without the frames of this file; the exit code is then 1.

    Nothing waits in a buffer: what was printed before an end by force is told, output and errors in the order in which they were written.
    """
    with open(0, "rb") as given:
        program = given.read()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(1, 2)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115  # to the end of the process
    sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        exec(compile(program, NAME, "exec"), vars(module))  # this is what it is for
    except Exception as error:
        tell(error, program)
        sys.exit(1)


def tell(error: Exception, program: bytes) -> None:
    """The traceback, with the program's lines."""
    import linecache
    import traceback

    lines = program.decode("utf-8", "replace").splitlines(keepends=True)
    linecache.cache[NAME] = (len(program), None, lines, NAME)
    own = error.__traceback__.tb_next if error.__traceback__ else None
    sys.stdout.flush()
    traceback.print_exception(type(error), error, own)


if __name__ == "__main__":
    main()
