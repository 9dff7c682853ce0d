"""The table of model families on SGLang: right from the folder through three syncs; see tests/families.py."""

from __future__ import annotations

import pathlib

import pytest
from families import family_row, make_family

from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_tokenizer

pytestmark = pytest.mark.long  # an engine for each family

RIGHT = (
    "llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "olmo2", "gpt2", "mixtral", "qwen3-moe", "olmoe", "granite-moe", "glm4-moe",
)  # fmt: skip
CLOSE = 1e-5


def on_this_rank(family: str, folder: str) -> dict[str, float]:
    return family_row(family, pathlib.Path(folder), engine="sglang")


@pytest.mark.parametrize("family", RIGHT)
def test_a_family_is_right_before_and_after_three_syncs(tmp_path: pathlib.Path, family: str) -> None:
    make_family(family, seed=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    [row] = run_spmd(on_this_rank, 1, family, str(tmp_path), timeout_s=500)
    assert row["before"] <= CLOSE and row["after"] <= CLOSE and row["greedy"] == [] and row["differing"] == []
    assert not [name for name in row["unverified"] if ".experts." in name]
