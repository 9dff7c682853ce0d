"""Whatever stands in a recipe, in flags, in rows, in a checkpoint's files: an error of the user's in a line, never a traceback or a hang.

`make fuzz` installs hypothesis and runs this; `ARGS='--examples 20000'` for long. Without hypothesis it is skipped.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightrft.cli.flags import parse
from lightrft.cli.settings import checked
from lightrft.config.load import make_config, read_recipe
from lightrft.config.schema import Config
from lightrft.data.rows import load_rows
from lightrft.errors import CheckpointError, ConfigError, DataError, UserError
from lightrft.run.checkpoint_folder import damage, folder_of, read, seal
from lightrft.run.run_data import read_run
from lightrft.utils.sandbox import wire

hypothesis = pytest.importorskip("hypothesis", reason="`make fuzz` installs it")
given, st = hypothesis.given, hypothesis.strategies

pytestmark = pytest.mark.long
NAMES = [*Config.model_fields]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-5, 5), st.floats(), st.text(max_size=20),
    st.sampled_from(["", "~", "nan", "1e999", "0x", "0b_", "2026-02-30", "!!int x", "\0", "\ud800", "../x", "-", "{", "&a", "*a", "<<"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)
SETTINGS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=12), VALUES, max_size=8)


def one_line_each(error: Exception) -> None:
    lines = error.problems if isinstance(error, ConfigError) else [str(error)]
    assert lines
    assert all(line and "\n" not in line and "Traceback" not in line for line in lines), lines


@contextlib.contextmanager
def told(kind: type[Exception] = UserError) -> Any:
    """Anything but such an error, in a line each, fails."""
    try:
        yield
    except kind as error:
        one_line_each(error)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(text=st.binary(max_size=400))
def test_a_recipe_of_any_bytes(place: Path, text: bytes) -> None:
    (place / "bytes.yaml").write_bytes(text)
    with told():
        make_config(read_recipe(place / "bytes.yaml"))


@given(text=st.text(alphabet=st.sampled_from("ab01:-?[]{},&*!|>'\"%@` \n\t#.<=~_+é\u2028"), max_size=120), name=st.sampled_from(NAMES))
def test_a_recipe_of_yamls_own_signs(place: Path, text: str, name: str) -> None:
    (place / "signs.yaml").write_text(f"{name}: {text}", encoding="utf-8")
    with told():
        make_config(read_recipe(place / "signs.yaml"))


@given(settings=SETTINGS)
def test_a_recipe_of_any_values(place: Path, settings: dict[str, Any]) -> None:
    with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError):
        (place / "values.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
        with told():
            make_config(read_recipe(place / "values.yaml"))


@given(settings=SETTINGS)
def test_settings_are_checked_against_each_other(settings: dict[str, Any]) -> None:
    values = {
        name: value for name, value in settings.items() if name not in ("reward", "plugins", "environment", "prompt_data", "eval_data")
    }
    with told():
        checked(
            {"strategy": "single", "engine_type": "hf", "prompt_data": "gone.jsonl", **values}, problems=[], mode="bisect", world_size=1
        )


WORDS = st.sampled_from(
    [f"--{name}" for name in NAMES] + ["--config", "--nproc-per-node", "--max-restarts", "--json", "--", "-x", "--no-", "--a.b"]
)


@given(words=st.lists(WORDS | st.text(max_size=12) | SCALARS.map(str), max_size=8))
def test_flags_of_any_words(words: list[str]) -> None:
    hypothesis.assume(not {"-h", "--help"} & {*words})
    with told():
        make_config(parse(words, command="train", description="d", nproc_help="h").settings)


ROWS = st.lists(
    st.dictionaries(st.sampled_from(["prompt", "answer", "tools", "images"]) | st.text(max_size=5), VALUES, max_size=4), max_size=4
)


@given(rows=ROWS)
def test_rows_of_any_values(place: Path, rows: list[dict[str, Any]]) -> None:
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with told(DataError):
        load_rows(str(place / "rows.jsonl"), required=["prompt"])


@given(text=st.binary(max_size=300))
def test_rows_of_any_bytes(place: Path, text: bytes) -> None:
    for name in ("bytes.jsonl", "bytes.parquet"):
        (place / name).write_bytes(text)
        with told(DataError):
            load_rows(str(place / name), required=["prompt"])


def saved(place: Path) -> Path:
    folder = folder_of(place / "run", 3)
    shutil.rmtree(place / "run", ignore_errors=True)
    (folder / "actor").mkdir(parents=True)
    (folder / "actor" / "w").write_bytes(b"w")
    (folder / "actor" / "manifest.json").write_text(
        json.dumps({"files": {"w": "50e721e49c013f00c62cf59f2163542a9d8df02464efeb615d31051b0fddc326"}})
    )
    seal(folder, {"step": 3, "config": {}})
    return folder


def test_the_checkpoint_that_is_changed_below_is_whole(place: Path) -> None:
    assert damage(saved(place)) == ""


@given(
    text=st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()),
    which=st.sampled_from(["trainer.json", "actor/manifest.json"]),
)
def test_files_of_a_checkpoint_of_any_content(place: Path, text: bytes, which: str) -> None:
    folder = saved(place)
    (folder / which).write_bytes(text)
    with told(CheckpointError):
        read(folder)
    assert "is damaged" in damage(folder)


@given(value=VALUES)
def test_manifests_of_any_values_that_are_signed(place: Path, value: Any) -> None:
    """As an attacker would: the checksums fit."""
    folder = saved(place)
    (folder / "actor" / "manifest.json").write_text(json.dumps({"files": value}))
    seal(folder, {"step": 3, "config": {}})
    found = damage(folder)
    assert isinstance(found, str) and "\n" not in found


@given(value=VALUES)
def test_indices_of_shards_of_any_values(place: Path, value: Any) -> None:
    files = pytest.importorskip("lightrft_fsdp.dcp_files")
    (place / files.INDEX).write_text(json.dumps(value))
    with told(CheckpointError):
        files.read_tensors(place)


@given(text=st.binary(max_size=200))
def test_run_folders_of_any_content(place: Path, text: bytes) -> None:
    folder = place / "torn"
    folder.mkdir(exist_ok=True)
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "warnings.jsonl"):
        (folder / name).write_bytes(text if name != "config.yaml" else b"seed: 1")
    with told():
        read_run(folder)
    (folder / "config.yaml").write_bytes(text)
    with told():
        read_run(folder)


@given(value=VALUES)
def test_messages_of_a_program_of_any_values(value: Any) -> None:
    """Those are ValueError and the like, which the checker takes for a program that does not keep to the form."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, ArithmeticError):
        wire.unpack(json.loads(json.dumps(value)), lambda tag, number: number)
