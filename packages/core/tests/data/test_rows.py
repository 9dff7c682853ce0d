"""The three kinds of data become the same rows; every bad one gets a line that says where."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lightrft.data.prompts import load_rows
from lightrft.errors import DataError

ROWS = [{"prompt": "a{b}", "answer": "1"}, {"prompt": "ü", "answer": "2"}]
GSM8K = Path(__file__).parents[4] / "examples" / "data" / "gsm8k"


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def message(path: str, required: list[str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(path, required=required or ["prompt"])
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_jsonl_skips_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeff" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1], ensure_ascii=False) + "\n  \n"
    assert load_rows(write(tmp_path / "d.jsonl", text), required=["prompt", "answer"]) == ROWS


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.jsonl")
    assert "a pipe or a device" in message(str(tmp_path / "d.jsonl"))


def test_names_with_ends_of_lines_are_quoted_in_one_line(tmp_path: Path) -> None:
    assert message(write(tmp_path / "d.jsonl", json.dumps({"a\nb\r": "1"}))).endswith(r"no column 'prompt' (columns: a\nb\r)")


def test_parquet_gives_the_same_rows_and_lists_of_messages(tmp_path: Path) -> None:
    chat = [{"prompt": [{"role": "user", "content": "hi"}], "answer": None}]
    for rows in (ROWS, chat):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
        assert load_rows(str(tmp_path / "d.parquet"), required=["prompt"]) == rows


def test_datasets_folder_gives_the_same_rows_and_a_dict_its_train_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra lightrft[datasets] is not installed")
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=one, test=one.select([0])).save_to_disk(str(tmp_path / "two"))
    datasets.DatasetDict(dev=one, test=one).save_to_disk(str(tmp_path / "three"))
    assert load_rows(str(tmp_path / "one"), required=["prompt"]) == ROWS
    assert load_rows(str(tmp_path / "two"), required=["prompt"]) == ROWS
    assert load_rows(str(tmp_path / "three" / "dev"), required=["prompt"]) == ROWS
    text = message(str(tmp_path / "three"))
    assert "the splits dev, test but no 'train'" in text and str(tmp_path / "three" / "dev") in text


def test_a_folder_without_rows_is_told_as_one(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra lightrft[datasets] is not installed")
    empty = datasets.Dataset.from_dict({"prompt": []})
    for name, saved in {"one": empty, "train": datasets.DatasetDict(train=empty), "none": datasets.DatasetDict()}.items():
        saved.save_to_disk(str(tmp_path / name))
        assert message(str(tmp_path / name)) == f"{tmp_path / name} holds no rows; at least one is needed"


def test_strange_folder_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra lightrft[datasets] is not installed")
    told = message(str(tmp_path))
    assert f"{tmp_path} is not a folder written by datasets.save_to_disk (FileNotFoundError: " in told
    assert told.endswith("; give such a folder, a .jsonl or .parquet file, or a hub name OWNER/NAME:SUBSET:SPLIT")


def test_folder_without_the_datasets_package_gives_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'lightrft[datasets]'" in message(str(tmp_path))


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    text = message(str(tmp_path / "no.jsonl"))
    assert "no.jsonl: no such file or folder" in text and ".parquet" in text
    text = message(write(tmp_path / "d.csv", "prompt\nx"))
    assert "d.csv: cannot read a file with suffix '.csv' (possible: .jsonl, .parquet, or a folder" in text


@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    assert "d.jsonl holds no rows" in message(write(tmp_path / "d.jsonl", text))


def test_empty_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), tmp_path / "d.parquet")
    assert "d.parquet holds no rows" in message(str(tmp_path / "d.parquet"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"prompt": "x",}', "not JSON: "),
        (b'{"prompt": "x"', 'found \'{"prompt": "x"\', expected one JSON object on each line'),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (b'["x"]', "found a list, \"['x']\", expected a JSON object with named columns"),
        (b"null", "found a NoneType"),
        (b'{"prompt": "\xff"}', "not UTF-8 (byte 0xff at position 12)"),
    ],
)
def test_malformed_line_is_named_by_its_number_in_the_file(tmp_path: Path, line: bytes, expected: str) -> None:
    path = write(tmp_path / "d.jsonl", b'{"prompt": "ok"}\n\n' + line + b"\n")
    text = message(path)
    assert text.startswith(f"{path}:3: ") and expected in text


def test_malformed_parquet(tmp_path: Path) -> None:
    assert "d.parquet is not a readable parquet file: " in message(write(tmp_path / "d.parquet", "no parquet"))


def test_missing_column_names_row_nearest_and_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", '{"prompt": "x", "answer": 1}\n\n{"promt": "y", "answer": 1}\n')
    assert message(path) == f"{path}:3: no column 'prompt'; did you mean 'promt'? (columns: answer, promt)"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    assert message(str(tmp_path / "d.parquet"), ["zzz"]).endswith("d.parquet, row 0: no column 'zzz' (columns: prompt, answer)")


def test_the_carried_gsm8k_is_whole() -> None:
    counts: dict[str, Any] = {
        name: len(load_rows(str(GSM8K / name), required=["question", "answer"])) for name in ("train.jsonl", "test.jsonl")
    }
    assert counts == {"train.jsonl": 7473, "test.jsonl": 1319}
    assert (GSM8K / "LICENSE").read_text().startswith("MIT License")
