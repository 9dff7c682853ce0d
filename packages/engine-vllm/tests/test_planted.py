"""Every published fault is caught on vLLM itself, and by its name."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch

from lightrft.errors import WeightSyncError
from lightrft.testing.planted import PlantedFaults
from lightrft.testing.planted_bench import LOWER_DOWN, PlantedBench, under_one_name
from lightrft_vllm.engine import CPU_BATCH_TOKENS


def own_copy_for_the_head(model: Any) -> None:
    model.lm_head = copy.deepcopy(model.model.embed_tokens)


def tie_again(model: Any) -> None:
    model.lm_head = model.model.embed_tokens


def load_half(model: Any, *, named: list[tuple[str, torch.Tensor]]) -> None:
    model.load_weights(named[::2])


class TestPlanted(PlantedFaults):
    engine_name = "vllm"

    def test_an_output_layer_of_its_own_that_hears_of_no_sync_is_found(self, bench: PlantedBench) -> None:
        """A tied model whose head is a copy"""
        bench.engine._llm.apply_model(own_copy_for_the_head)
        with bench.spoilt(under_one_name), pytest.raises(WeightSyncError, match="does not answer as the actor does"):
            bench.sync()
        bench.engine._llm.apply_model(tie_again)
        bench.heal()

    def test_an_update_outside_of_reload_weights_is_named(self, bench: PlantedBench) -> None:
        """Half of the tensors, by the model's own method and not between vLLM's begin and end"""

        def load(method: str, *, kwargs: dict[str, Iterable[tuple[str, torch.Tensor]]]) -> None:
            named = list(kwargs["weights_iterator"])
            bench.engine._llm.apply_model(partial(load_half, named=named))

        llm = bench.engine._llm
        llm.collective_rpc = load
        with pytest.raises(WeightSyncError, match=f"the checksum differs of {LOWER_DOWN.partition('mlp')[0]}self_attn.q_proj.weight"):
            bench.sync()
        del llm.collective_rpc
        bench.heal()

    def test_prompts_of_more_tokens_than_a_forward_takes_draw_what_they_draw_alone(self, bench: PlantedBench) -> None:
        """Not planted: vLLM 0.32 itself fails where such a prompt is cut and its request has a seed"""
        prompts = [[3 + (7 * i + 5 * number) % 50 for i in range(200)] for number in range(40)]
        sampling = {"n": 2, "max_new_tokens": 4, "seed": 5}
        together = bench.strategy.gather_and_generate(sampling, all_prompt_token_ids=prompts)
        assert sum(map(len, prompts)) > CPU_BATCH_TOKENS and [len(o.completions) for o in together] == [2] * len(prompts)
        [alone] = bench.strategy.gather_and_generate(sampling, all_prompt_token_ids=prompts[:1])
        assert [list(c.token_ids) for c in alone.completions] == [list(c.token_ids) for c in together[0].completions]
