"""Before a run's first packed pass its models get the attention for it, and show that they do not mix sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.errors import ModelError
from lightrft.models.attention import has_our_attention
from lightrft.models.critic import make_critic
from lightrft.strategy import get_strategy
from lightrft.testing.packed_rows import family
from lightrft.testing.workload import SETTINGS
from lightrft.trainer.rows import beyond_budget, ready_for_rows


def prepared(model: Any, **settings: Any) -> tuple[torch.nn.Module, Any, Any]:
    config = make_config({"strategy": "single", **settings})
    strategy = get_strategy(config)
    ready, _ = strategy.prepare_trainable(model, optimizer=SETTINGS)
    ready_for_rows(ready, config=config, strategy=strategy)
    return ready, config, strategy


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "sinks"])
def test_models_that_can_be_packed_are_ready(name: str) -> None:
    model, config, strategy = prepared(family(name), packing_samples=True)
    assert has_our_attention(model)
    ready_for_rows(model, config=config, strategy=strategy)  # once is enough, twice is no harm


def test_a_critic_whose_values_are_all_zero_is_judged_by_its_hidden_states() -> None:
    model, _, _ = prepared(make_critic(family("qwen3")), packing_samples=True)
    assert has_our_attention(model)


def test_padded_rows_leave_a_model_as_it_is_but_for_a_soft_cap() -> None:
    """transformers' sdpa would drop it, and train another model than engines sample from."""
    assert not has_our_attention(prepared(family("qwen3"))[0])
    assert has_our_attention(prepared(family("gemma2"))[0])


def test_a_model_that_mixes_sequences_is_refused_by_the_setting() -> None:
    import transformers

    config: Any = transformers.MambaConfig
    make: Any = transformers.MambaForCausalLM
    mamba = make(config(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))
    with pytest.raises(ModelError, match=r"packing_samples=True: .*leave packing_samples out"):
        prepared(mamba, packing_samples=True)


def test_a_budget_below_the_longest_sequence_is_said() -> None:
    asked = {"packing_samples": True, "prompt_max_len": 40, "generate_max_len": 24}
    assert beyond_budget(make_config(asked | {"max_tokens_per_micro_batch": 64})) == ""
    assert beyond_budget(make_config({"max_tokens_per_micro_batch": 8})) == ""  # which nothing packs
    found = beyond_budget(make_config(asked | {"max_tokens_per_micro_batch": 63}))
    assert found.startswith("max_tokens_per_micro_batch=63 is below prompt_max_len + generate_max_len = 64: a sequence of more than 63 ")


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_the_check_leaves_nothing_at_which_a_compiled_block_would_break_off(name: str) -> None:
    """transformers' `output_hidden_states` would leave hooks in every block, of which the compiler can take none."""
    model, _, _ = prepared(family(name), packing_samples=True)
    assert not any(module._forward_hooks for module in model.modules())
