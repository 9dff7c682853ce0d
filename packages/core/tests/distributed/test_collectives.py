"""Values meet across ranks: ragged, nested, exact, and without writing into what was given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightrft.distributed import collectives
from lightrft.distributed.world import World
from lightrft.errors import PeerError
from lightrft.testing import run_spmd

CPU = torch.device("cpu")


def error_of(what: Any) -> str:
    with pytest.raises((ValueError, PeerError)) as caught:
        what()
    return f"{caught.type.__name__}: {caught.value}"


def reductions(world: World) -> dict[str, Any]:
    def reduce(data: Any, op: Any = "mean") -> Any:
        return collectives.all_reduce(data, op=op, group=world.group, device=world.device)

    mine = torch.arange(3) + 10 * world.rank
    before = mine.clone()
    nested = {"b": {"y": world.rank}, "a": torch.tensor([1.0, float(world.rank)])}
    if world.rank == 1:  # the order in which a mapping was filled differs between ranks
        nested = dict(reversed(nested.items()))
    out = {
        "mean of ints": reduce(mine),
        "sum of ints": reduce(mine, "sum"),
        "max": reduce(world.rank, "max"),
        "min": reduce(-1.5 * world.rank, "min"),
        "mean": reduce(world.rank),
        "large sum": reduce(2**53 + world.rank, "sum"),
        "nested": reduce(nested),
        "bf16": reduce(torch.tensor(float(world.rank), dtype=torch.bfloat16), "sum").dtype,
        "unknown": error_of(lambda: reduce(1, "median")),
        "text": error_of(lambda: reduce("one")),
    }
    out["untouched"] = torch.equal(mine, before) and nested["b"] == {"y": world.rank}
    return out


def gathers(world: World) -> dict[str, Any]:
    def gather(data: Any) -> Any:
        return collectives.all_gather(data, group=world.group, device=world.device)

    rows = torch.full((world.rank, 2), float(world.rank))  # none on rank 0
    return {
        "ragged": gather(rows),
        "scalars": gather(torch.tensor(world.rank)),
        "numbers": gather(1.5 * world.rank),
        "nested": gather({"n": world.rank, "t": {"rows": torch.tensor([world.rank])}}),
        "bools": gather(torch.tensor([world.rank == 1])),
        "objects": collectives.gather_objects(("rank", world.rank), group=world.group),
        "broadcast": collectives.broadcast_object(("from", world.rank), source=2, group=world.group),
        "list": error_of(lambda: gather([1])),
    }


def to_the_first_and_back(world: World) -> dict[str, Any]:
    mine = torch.arange(world.rank, dtype=torch.int32)
    gathered = collectives.gather_to_first(mine, group=world.group)
    empty = collectives.gather_to_first(mine[:0], group=world.group)
    back = collectives.scatter_from_first([t * 2 for t in gathered], dtype=torch.int32, group=world.group)
    return {"gathered": [t.tolist() for t in gathered], "empty": [t.tolist() for t in empty], "back": back.tolist(), "dtype": back.dtype}


def agreements(world: World) -> dict[str, Any]:
    collectives.agree(None, group=world.group, doing="nothing")
    error = ValueError(f"bad row on {world.rank}") if world.rank > 0 else None
    return {"error": error_of(lambda: collectives.agree(error, group=world.group, doing="reading data"))}


def measure() -> dict[str, Any]:
    world = World.join(need_group=True)
    return reductions(world) | {"gathers": gathers(world), "first": to_the_first_and_back(world), "agree": agreements(world)}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_spmd(measure, 3)


def test_reductions(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["mean of ints"].tolist() == [10.0, 11.0, 12.0] and rank["mean of ints"].dtype is torch.float32
        assert rank["sum of ints"].tolist() == [30, 33, 36] and rank["sum of ints"].dtype is torch.int64
        assert (rank["max"], rank["min"], rank["mean"]) == (2, -3.0, 1.0)
        assert type(rank["max"]) is int and type(rank["mean"]) is float
        assert rank["large sum"] == 3 * 2**53 + 3  # no detour over floats
        assert rank["nested"]["a"].tolist() == [1.0, 1.0] and rank["nested"]["b"] == {"y": 1.0}
        assert rank["bf16"] is torch.bfloat16


def test_inputs_are_not_written_to(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["untouched"] for rank in ranks)


def test_what_cannot_be_reduced_or_gathered_is_named(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["unknown"] == "ValueError: op='median'; possible: mean, sum, max, min"
        assert rank["text"].startswith("ValueError: cannot reduce a str")
        assert rank["gathers"]["list"].startswith("ValueError: cannot gather a list")


def test_ragged_gathers_in_rank_order(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["gathers"]
        assert found["ragged"].tolist() == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
        assert found["scalars"].tolist() == [0, 1, 2]
        assert found["numbers"] == [0.0, 1.5, 3.0]
        assert found["nested"]["n"] == [0, 1, 2] and found["nested"]["t"]["rows"].tolist() == [0, 1, 2]
        assert found["bools"].tolist() == [False, True, False]
        assert found["objects"] == [("rank", 0), ("rank", 1), ("rank", 2)]
        assert found["broadcast"] == ("from", 2)


def test_ragged_to_the_first_rank_and_back(ranks: list[dict[str, Any]]) -> None:
    first = ranks[0]["first"]
    assert first["gathered"] == [[], [0], [0, 1]] and first["empty"] == [[], [], []]
    assert [rank["first"]["gathered"] for rank in ranks[1:]] == [[], []]
    assert [rank["first"]["back"] for rank in ranks] == [[], [0], [0, 2]]
    assert {rank["first"]["dtype"] for rank in ranks} == {torch.int32}


def test_an_error_is_raised_on_all_ranks_its_own_where_it_happened(ranks: list[dict[str, Any]]) -> None:
    assert [rank["agree"]["error"] for rank in ranks] == [
        "PeerError: reading data failed on rank 1 of its group: ValueError: bad row on 1",
        "ValueError: bad row on 1",
        "ValueError: bad row on 2",
    ]


def test_one_rank_without_a_group() -> None:
    given = torch.tensor([1, 2])
    reduced = collectives.all_reduce({"x": given, "n": 3}, op="mean", group=None, device=CPU)
    assert reduced["x"].tolist() == [1.0, 2.0] and reduced["n"] == 3.0
    summed = collectives.all_reduce(given, op="sum", group=None, device=CPU)
    gathered = collectives.all_gather(given, group=None, device=CPU)
    summed[0], gathered[0] = 7, 7
    assert given.tolist() == [1, 2]
    assert collectives.all_gather({"n": 3}, group=None, device=CPU) == {"n": [3]}
    with pytest.raises(KeyError, match="own"):
        collectives.agree(KeyError("own"), group=None, doing="alone")
