"""Whether packed rows, and rows that ranks share, give the update of padded rows. Core makes them; a strategy has to let them through."""

from __future__ import annotations

from lightrft.testing.conformance.bench import StrategyBench
from lightrft.testing.conformance.requirement import check
from lightrft.testing.conformance.update import LOSS_SHARES, compare
from lightrft.testing.row_parity import VARIANTS, measured


@check("prepare_trainable", after=LOSS_SHARES)
def packed_rows_give_the_same_update(bench: StrategyBench) -> None:
    """`packing_samples` changes time, and not what is learnt: the prepared model passes all of its arguments on"""
    _same(bench, "packed")


@check("prepare_trainable", after=LOSS_SHARES)
def shared_rows_give_the_same_update(bench: StrategyBench) -> None:
    """`sp_size` changes memory, and not what is learnt: gradients are summed over all ranks, those of a sequence among them"""
    if bench.world_size % 2 == 0:
        _same(bench, "sp 2")


def _same(bench: StrategyBench, variant: str) -> None:
    padded = measured(bench.strategy, "qwen3")
    compare(measured(bench.start(**VARIANTS[variant]), "qwen3"), padded, variant)
