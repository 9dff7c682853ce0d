"""Cells of Arrow: what was written is what is read, and a cell that is no value of Python is named by its row and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lightrft.data.rows import load_rows
from lightrft.errors import DataError

SMALL = pyarrow.float32()


def rows_of(folder: Path, **columns: Any) -> list[dict[str, Any]]:
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "d.parquet")
    return load_rows(str(folder / "d.parquet"), required=[])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (SMALL, [0.1, -2.7, 1e-38, 3.4e38, 1073741824.0, 0.0, None]),
        (pyarrow.float16(), [0.1, -2.7, 65504.0, 6e-08]),
        (pyarrow.float64(), [0.1, 1 / 3, 1e308, 0.10000000149011612]),
        (pyarrow.list_(SMALL), [[0.1, None], []]),
        (pyarrow.struct([("a", SMALL), ("b", pyarrow.float64())]), [{"a": 0.1, "b": 0.10000000149011612}]),
    ],
)
def test_a_float_of_few_bits_is_the_decimal_that_was_written(tmp_path: Path, kind: Any, values: list[Any]) -> None:
    found = [row["x"] for row in rows_of(tmp_path, x=pyarrow.array(values, kind))]
    assert str(found) == str(values)


def test_floats_in_maps_and_those_that_are_not_finite(tmp_path: Path) -> None:
    [row] = rows_of(
        tmp_path, x=pyarrow.array([[("k", 0.3)]], pyarrow.map_(pyarrow.string(), SMALL)), y=pyarrow.array([float("inf")], SMALL)
    )
    assert row == {"x": {"k": 0.3}, "y": float("inf")}


def no_unicode() -> Any:
    return pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, pyarrow.array(["ab", "ab"]).buffers()[1], pyarrow.py_buffer(b"aba\xff")])


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (no_unicode(), "row 1: column 'x' (string) cannot be read: 'utf-8' codec can't decode byte 0xff"),
        (pyarrow.array([1, 2**62], pyarrow.duration("ms")), "row 1: column 'x' (duration[ms]) cannot be read"),
        (pyarrow.array([1, 2**52], pyarrow.timestamp("ms")), "row 1: column 'x' (timestamp[ms]) cannot be read"),
    ],
)
def test_a_cell_that_python_has_no_value_for(tmp_path: Path, cells: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path, prompt=["a", "b"], x=cells)
    assert f"d.parquet, {words}" in str(caught.value) and "\n" not in str(caught.value)
