"""The shipped recipes can be run. Validated against the plugins they name, without their models."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lightrft.config import Config, make_config, read_recipe
from lightrft.config.checks import check
from lightrft.errors import ConfigError
from lightrft.plugins import Capability, EngineSpec, PluginEntry, Registry
from lightrft.plugins.registry import Provider

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples/recipes"
VLLM = PluginEntry(
    provider=Provider(distribution="lightrft-engine-vllm", version="0.1.0", entry_point="vllm"),
    spec=EngineSpec(
        name="vllm",
        target="lightrft_vllm.engine:VLLMEngine",
        topology="spmd",
        capabilities=frozenset(
            {
                Capability.LOGPROBS,
                Capability.SEED,
                Capability.SLEEP_1,
                Capability.SLEEP_2,
                Capability.MEM_UTIL,
                Capability.TENSOR_PARALLEL,
                Capability.MULTIMODAL,
            }
        ),
    ),
)
"""What the recipe needs of an engine that need not be installed here."""


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    """Recipes name data files from the repository's root."""
    monkeypatch.chdir(ROOT)


def recipe(name: str, tmp_path: Path) -> Config:
    settings = read_recipe(RECIPES / name) | {"output_dir": str(tmp_path / "run")}
    if "images_key" in settings:  # its data has to be downloaded: a row of the same columns stands for it
        columns = {settings[key]: [""] for key in ("input_key", "label_key")} | {settings["images_key"]: [[{"bytes": b"", "path": ""}]]}
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
        settings |= {"prompt_data": str(tmp_path / "rows.parquet"), "eval_data": str(tmp_path / "rows.parquet")}
    return make_config(settings)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_a_recipe_can_be_run(name, world_size, tmp_path):
    installed = [entry for entry in Registry.discover().entries() if (entry.kind, entry.name) != ("engine", "vllm")]
    check(recipe(name, tmp_path), registry=Registry([*installed, VLLM]), world_size=world_size)


def test_a_recipe_for_an_engine_that_is_missing_says_what_to_install(tmp_path):
    without = Registry([entry for entry in Registry.discover().entries() if (entry.kind, entry.name) != ("engine", "vllm")])
    with pytest.raises(ConfigError, match=r"pip install 'lightrft\[vllm\]'"):
        check(recipe("qwen2.5-1.5b-gsm8k.yaml", tmp_path), registry=without, world_size=8)


def test_the_prompt_asks_for_the_form_that_is_rewarded(tmp_path):
    config = recipe("qwen2.5-1.5b-gsm8k.yaml", tmp_path)
    assert "#### NUMBER" in config.prompt_template
    assert {"format", "math"} <= set(config.reward)
    assert config.apply_chat_template and config.fsdp and config.bf16


def test_the_small_recipe_trains_on_one_file_and_evaluates_on_the_other(tmp_path):
    config = recipe("gsm8k-tiny.yaml", tmp_path)
    assert (Path(config.prompt_data).name, Path(config.eval_data[0]).name) == ("train.jsonl", "test.jsonl")
    assert config.reward == ["format", "math"]
