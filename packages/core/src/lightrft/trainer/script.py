"""What a training script does around its own function: checks before a process starts, ranks, reports of what fails. No torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from lightrft.config.checks import check
from lightrft.config.load import as_config
from lightrft.distributed.failure import USER_ERROR_EXIT, reporting_failures
from lightrft.distributed.launch import default_nproc, relaunch_if_needed, under_torchrun
from lightrft.errors import UserError
from lightrft.plugins import Registry


def launch(train: Callable[[argparse.Namespace], object], args: argparse.Namespace, *, nproc_per_node: int | None = None) -> None:
    """Runs `train(args)` on every rank: the last line of a script of one's own.

    Under `torchrun` this process is a rank. Else every problem of the settings is printed and the process exits with 2, or the same command
    line is started on `nproc_per_node` ranks (None: one for each GPU, else one), and the process exits with their code. An exception in a
    rank ends the run and is reported with the rank that failed first.

    Args:
        train: what a rank does; it has to import torch itself, the launcher needs none.
        args: the namespace of a parser that `add_arguments` was given.

    Example::

        import argparse

        import lightrft


        def train(args):
            strategy = lightrft.get_strategy(args)
            strategy.print(f"{strategy.world.world_size} ranks")
            strategy.shutdown()


        if __name__ == "__main__":
            lightrft.launch(train, lightrft.add_arguments(argparse.ArgumentParser()).parse_args())
    """
    if not under_torchrun():
        try:  # all problems at once, before any process starts
            check(as_config(args), registry=Registry.discover(), world_size=nproc_per_node or default_nproc())
        except UserError as error:
            print("".join(f"error: {line}\n" for line in str(error).splitlines()), end="", file=sys.stderr)
            sys.exit(USER_ERROR_EXIT)
    relaunch_if_needed(nproc_per_node)
    with reporting_failures():
        train(args)
