"""The table of model families on vLLM: right from the folder through three syncs, or refused by its cause; see tests/families.py."""

from __future__ import annotations

import pathlib

import pytest
from families import family_row, make_family

from lightrft.errors import LightRFTError, ModelError
from lightrft.testing.spmd import SpmdError, run_spmd
from lightrft.testing.tiny import tiny_tokenizer

pytestmark = pytest.mark.long  # an engine for each family

RIGHT = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi", "phi3", "olmo2", "granite", "stablelm", "starcoder2",
    "smollm3", "gpt2", "gpt-neox", "opt", "mixtral", "qwen2-moe", "qwen3-moe", "granite-moe", "glm4-moe", "gemma4", "falcon-h1",
    "olmoe", "gpt-oss", "hunyuan-moe", "granite-hybrid", "deepseek-v3-latent",
)  # fmt: skip
REFUSED = {
    "gemma3-vl": "which reads images.: OSError|vLLM needs torchvision",
    "deepseek-v3": "latent attention",
    "minimax-m2": r"vLLM does not start with model .*MiniMaxM2ForCausalLM.*e_score_correction_bias",
}
CLOSE = 1e-5


def on_this_rank(family: str, folder: str) -> dict[str, float]:
    return family_row(family, pathlib.Path(folder), engine="vllm")


def saved(family: str, folder: pathlib.Path) -> str:
    make_family(family, seed=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", RIGHT)
def test_a_family_is_right_before_and_after_three_syncs(tmp_path: pathlib.Path, family: str) -> None:
    [row] = run_spmd(on_this_rank, 1, family, saved(family, tmp_path), timeout_s=500)
    assert row["before"] <= CLOSE and row["after"] <= CLOSE and row["greedy"] == [] and row["differing"] == []
    assert not [name for name in row["unverified"] if ".experts." in name]


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_is_refused_by_its_cause(tmp_path: pathlib.Path, family: str) -> None:
    with pytest.raises((SpmdError, LightRFTError, ModelError), match=REFUSED[family]):
        run_spmd(on_this_rank, 1, family, saved(family, tmp_path), timeout_s=500)
