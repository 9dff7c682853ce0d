"""Nothing that is read from a file can run code: in our lines, and in what is called of other libraries on the way to a checkpoint."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import sys
import traceback
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import default_planner, filesystem, planner_helpers, state_dict_loader, state_dict_saver, utils

from lightrft.config.load import make_config
from lightrft.errors import CheckpointError, LightRFTError
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS

SOURCES = sorted(path for path in (Path(__file__).parents[1] / "packages").glob("*/src/**/*.py"))
UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
BETWEEN_OUR_OWN_PROCESSES = {"testing/spmd.py", "testing/spmd_rank.py", "testing/conformance/world.py"}
"""The test runner's calls and results, in a folder that it has made itself a moment before."""

ON_THE_PATH = (filesystem, default_planner, planner_helpers, state_dict_loader, state_dict_saver, utils)
NEVER_REACHED = {
    "read_metadata": "JsonIndexReader has its own",
    "load_bytes": "called for a bytes item only, and the JSON index knows tensors only",
}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call, str]]:
    """Every call as `dotted.name`, with the function it stands in."""
    for outer in ast.walk(tree):
        if isinstance(outer, (ast.FunctionDef, ast.Module, ast.AsyncFunctionDef)):
            for node in ast.walk(outer):
                if isinstance(node, ast.Call):
                    yield ast.unparse(node.func), node, getattr(outer, "name", "")


def unsafe(name: str, call: ast.Call, safe_loaders: Set[str] = frozenset()) -> bool:
    said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name.endswith("torch.load") or name == "torch.load":
        return said.get("weights_only") != "True"
    if name.split(".")[-1] in ("load", "loads", "Unpickler") and name.split(".")[0] in UNPICKLES:
        return True
    if name.endswith(("numpy.load", "np.load")):
        return said.get("allow_pickle", "False") != "False"
    if name.startswith("yaml."):
        loader = said.get("Loader", "")
        return (
            name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
            and "Safe" not in loader
            and loader not in safe_loaders
        )
    return name.split(".")[-1] in ("read_pickle", "unsafe_load", "full_load")


def test_our_lines_unpickle_nothing() -> None:
    assert len(SOURCES) > 150
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(path.as_posix().endswith(name) for name in BETWEEN_OUR_OWN_PROCESSES):
            continue
        safe = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and any("SafeLoader" in ast.unparse(base) for base in node.bases)
        }
        found = [f"{path}:{call.lineno} {name}" for name, call, _ in calls(tree) if unsafe(name, call, safe)]
        assert not found, found
        imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert not UNPICKLES & {*imported}, path


def test_what_we_call_of_torchs_checkpoints_unpickles_nothing_that_is_reached() -> None:
    found = {
        inside
        for module in ON_THE_PATH
        for name, call, inside in calls(ast.parse(inspect.getsource(module)))
        if inside and unsafe(name, call)
    }
    assert found == {*NEVER_REACHED}
    from lightrft_fsdp.dcp_files import JsonIndexReader

    assert "read_metadata" in vars(JsonIndexReader)


def save(folder: Path) -> Any:
    strategy = get_strategy(make_config({"fsdp": True}))
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(seed=0, vocab_size=64), optimizer=SETTINGS)
    strategy.save_ckpt(folder, model=model, optimizer=optimizer, client_state={"step": 1})
    return lambda: strategy.load_ckpt(folder, model=model, optimizer=optimizer)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("EXECUTED"),))


def loads_watched(folder: str) -> list[str]:
    """Every class that is looked up while a checkpoint is loaded, but for what ranks send each other."""
    load, seen, watching = save(Path(folder) / "good"), [], [False]

    def watch(event: str, about: Any) -> None:
        if watching and watching[0] and event == "pickle.find_class":
            stack = traceback.extract_stack()
            if not any(frame.name == "_tensor_to_object" for frame in stack):
                seen.append(f"{about} from {stack[-2].filename}:{stack[-2].lineno}")

    sys.addaudithook(watch)
    pickle.loads(pickle.dumps(Path("x")))
    watching[0] = True
    load()
    plain = list(seen)
    pickle.loads(pickle.dumps(Path("x")))
    watching[0] = False
    assert len(seen) > len(plain), "the hook sees a pickle"
    return plain


@pytest.mark.parametrize("world_size", [1, 2])
def test_loading_a_checkpoint_looks_up_no_class(tmp_path: Path, world_size: int) -> None:
    assert run_spmd(loads_watched, world_size, str(tmp_path)) == [[]] * world_size


def pickles_everywhere(folder: str) -> list[str]:
    """A pickle in place of each file of a checkpoint, with checksums that fit: what loading says."""
    import hashlib

    load, good, said = save(Path(folder) / "good"), Path(folder) / "good", []
    before = {path: path.read_bytes() for path in good.iterdir() if path.name != "manifest.json"}
    manifest = (good / "manifest.json").read_text()
    for evil in [*before, good / ".metadata"]:
        for path, content in before.items():
            path.write_bytes(content)
        (good / ".metadata").unlink(missing_ok=True)
        evil.write_bytes(pickle.dumps(Evil()))
        about = json.loads(manifest)
        about["files"] = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in good.iterdir() if path.name != "manifest.json"
        }
        (good / "manifest.json").write_text(json.dumps(about))
        try:
            load()
            said.append(f"{evil.name}: not read")
        except (LightRFTError, pickle.UnpicklingError) as error:
            said.append(f"{evil.name}: {type(error).__name__}")
    return said


def test_a_pickle_in_any_place_of_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [said] = run_spmd(pickles_everywhere, 1, str(tmp_path))
    assert not (tmp_path / "EXECUTED").exists()
    assert ".metadata: not read" in said and len(said) == 5, said
    assert all(line.endswith(("not read", "Error")) for line in said)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../../secret"},
        {"file": "/etc/passwd"},
        {"file": ""},
        {"offset": -1},
        {"offset": True},
        {"length": "1"},
        {"length": 1.5},
        {"sizes": [-3]},
        {"offsets": "12"},
        {"offsets": None},
    ],
)
def test_the_index_is_checked_value_by_value(tmp_path: Path, change: dict[str, Any]) -> None:
    from lightrft_fsdp.dcp_files import INDEX, read_tensors

    chunk = {"offsets": [0], "sizes": [3], "file": "__0_0.distcp", "offset": 0, "length": 9}
    index = {"model/w": {"dtype": "float32", "size": [3], "chunks": [chunk]}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert read_tensors(tmp_path)["model/w"].size == torch.Size([3])
    index["model/w"]["chunks"] = [chunk | change]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"a": 1}', '{"a": {"dtype": "object", "size": [1], "chunks": []}}', "[" * 100_000]
)
def test_an_index_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    from lightrft_fsdp.dcp_files import INDEX, read_tensors

    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        read_tensors(tmp_path)
    assert "\n" not in str(caught.value)
