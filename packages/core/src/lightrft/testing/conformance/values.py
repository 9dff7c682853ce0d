"""Values across ranks: reductions and gathers by hand."""

from __future__ import annotations

import contextlib
import io

import torch

from lightrft.testing.conformance.bench import StrategyBench
from lightrft.testing.conformance.requirement import check


@check("all_reduce")
def all_reduce_gives_mean_sum_max_and_min(bench: StrategyBench) -> None:
    """Of tensors, numbers and nested dicts, on every rank; a mean of integers is a float"""
    rank, world = bench.rank, bench.world_size
    expected = {"sum": world * (world + 1) / 2, "mean": (world + 1) / 2, "max": float(world), "min": 1.0}
    for op, value in expected.items():
        data = {"tensor": torch.tensor([float(rank + 1), 7.0]), "deep": {"number": rank + 1, "half": float(rank + 1)}}
        found = bench.strategy.all_reduce(data, op)  # type: ignore[arg-type]  # mypy widens the key
        seven = 7.0 * world if op == "sum" else 7.0
        assert found["tensor"].tolist() == [value, seven], (
            f"all_reduce {op} of rank + 1 over {world} ranks gives {found['tensor']}, not {value}"
        )
        numbers = found["deep"]["number"], found["deep"]["half"]
        assert numbers == (value, value), f"all_reduce {op} of the numbers rank + 1 gives {numbers}, expected {value}"
    integers = bench.strategy.all_reduce(torch.tensor([rank + 1]), "mean")
    assert integers.is_floating_point() and integers.item() == expected["mean"], f"the mean of integer tensors is {integers!r}"


@check("all_reduce")
def all_reduce_keeps_kinds_and_digits(bench: StrategyBench) -> None:
    """A tensor keeps its dtype and shape (integers become floats for a mean alone), a number stays one, and no digit is lost on the way"""
    rank, world = bench.rank, bench.world_size
    large = 2**40 + 1
    for dtype in (torch.int64, torch.int32, torch.float64, torch.bfloat16):
        found = bench.strategy.all_reduce(torch.ones(2, 1, dtype=dtype), "sum")
        kept = (found.dtype, tuple(found.shape)) == (dtype, (2, 1))
        assert kept, f"all_reduce of a tensor of {dtype} and shape (2, 1) gives {found.dtype} and {tuple(found.shape)}"
    for what, data in (("a tensor", torch.tensor([large])), ("a number", large), ("a double", torch.tensor([large], dtype=torch.float64))):
        found = bench.strategy.all_reduce(data, "max")
        value = found.item() if isinstance(found, torch.Tensor) else found
        assert value == large, f"all_reduce max of {what}, {large}, gives {value}: digits are lost on the way"
    kinds = [type(bench.strategy.all_reduce(number, "sum")) for number in (rank + 1, float(rank))]
    assert kinds == [int, float], f"all_reduce of an int and a float over {world} ranks gives {[k.__name__ for k in kinds]}"


@check("all_reduce")
def all_reduce_writes_nothing_into_its_input(bench: StrategyBench) -> None:
    """What is returned is new; the caller's tensors keep their values"""
    kept = {"a": torch.full((3,), float(bench.rank)), "c": torch.tensor(2.0)}
    given = {"a": kept["a"], "b": {"c": kept["c"]}}
    found = bench.strategy.all_reduce(given, "sum")
    untouched = kept["a"].tolist() == [float(bench.rank)] * 3 and kept["c"].item() == 2.0
    assert untouched and given["a"] is kept["a"], "all_reduce wrote into the tensors it was given; it has to return new ones"
    assert found["a"].data_ptr() != kept["a"].data_ptr(), "all_reduce returned the caller's own tensor (in place)"


@check("all_reduce")
def values_that_cannot_be_reduced_are_refused(bench: StrategyBench) -> None:
    """An unknown op or a value that is no number is a ValueError, and no rank is left waiting"""
    for data, op in ((1.0, "median"), ("text", "sum")):
        try:
            bench.strategy.all_reduce(data, op)  # type: ignore[arg-type]  # that is the point
        except ValueError:
            continue
        raise AssertionError(f"all_reduce({data!r}, {op!r}) was accepted")


@check("all_gather")
def all_gather_is_in_rank_order_and_takes_ragged_rows(bench: StrategyBench) -> None:
    """Rows of rank 0 come first; ranks may bring different numbers of rows, or none; numbers become a list"""
    rank, world = bench.rank, bench.world_size
    rows = torch.full((rank, 2), float(rank))
    found = bench.strategy.all_gather({"rows": rows, "number": 10 * rank, "scalar": torch.tensor(rank)})
    expected = [[float(r)] * 2 for r in range(world) for _ in range(r)]
    assert found["rows"].tolist() == expected, f"gathered rows are {found['rows'].tolist()}; in rank order they are {expected}"
    assert found["number"] == [10 * r for r in range(world)], f"gathered numbers are {found['number']}, in another order than the ranks'"
    assert found["scalar"].tolist() == list(range(world)), (
        f"gathered scalars are {found['scalar'].tolist()}, in another order than the ranks'"
    )
    assert rows.shape == (rank, 2), "all_gather changed the tensor it was given"


@check("all_gather")
def all_gather_keeps_kinds_and_nesting(bench: StrategyBench) -> None:
    """A tensor keeps its dtype and its other dimensions, a nested dict its nesting; a tensor may come alone"""
    rank, world = bench.rank, bench.world_size
    found = bench.strategy.all_gather({"deep": {"ids": torch.full((rank + 1, 2, 3), rank), "flag": torch.tensor([rank == 0])}, "n": 2.5})
    shape = (world * (world + 1) // 2, 2, 3)
    assert found.keys() == {"deep", "n"} and found["deep"].keys() == {"ids", "flag"}, f"all_gather of a nested dict gives {sorted(found)}"
    ids, flag = found["deep"]["ids"], found["deep"]["flag"]
    assert ids.dtype is torch.int64 and flag.dtype is torch.bool, f"all_gather of int64 and bool gives {ids.dtype} and {flag.dtype}"
    assert tuple(ids.shape) == shape, f"all_gather of [k, 2, 3] with k = 1 to {world} has the shape {tuple(ids.shape)}, expected {shape}"
    assert found["n"] == [2.5] * world, f"gathered numbers are {found['n']}"
    alone = bench.strategy.all_gather(torch.tensor([2**40 + rank]))
    assert alone.tolist() == [2**40 + r for r in range(world)], f"all_gather of int64 gives {alone.tolist()}: digits are lost on the way"


@check("print")
def rank_0_prints_alone(bench: StrategyBench) -> None:
    """`print` is silent on the other ranks, and `is_rank_0` says which rank this is"""
    assert bench.strategy.is_rank_0 == (bench.rank == 0), f"is_rank_0 is {bench.strategy.is_rank_0} on rank {bench.rank}"
    with contextlib.redirect_stdout(io.StringIO()) as written:
        bench.strategy.print("one line")
    expected = "one line\n" if bench.rank == 0 else ""
    assert written.getvalue() == expected, f"rank {bench.rank} printed {written.getvalue()!r}"


@check("describe")
def it_describes_itself_in_plain_data(bench: StrategyBench) -> None:
    """`describe` names the strategy and the number of ranks, and goes into the run folder as JSON"""
    import json

    found = bench.strategy.describe()
    assert (found["strategy"], found["world_size"]) == (bench.subject.name, bench.world_size), f"describe says {found}"
    assert json.loads(json.dumps(found)) == found, f"describe is not plain data: {found}"


@check("report_memory")
def memory_is_reported_in_gib(bench: StrategyBench) -> None:
    """Peak host memory of this rank, more than nothing and less than a machine has"""
    found = bench.strategy.report_memory("conformance")
    assert found and all(isinstance(v, float) and 0 <= v < 4096 for v in found.values()), f"report_memory says {found}"
