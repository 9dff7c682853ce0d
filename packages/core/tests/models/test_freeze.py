"""Which parameters `freeze` takes out of the training, by hand on small models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.errors import ModelError
from lightrft.models.freeze import freeze
from lightrft.strategy import get_strategy
from lightrft.testing.tiny import tiny_causal_lm, tiny_lora, tiny_model_folder
from lightrft.trainer.build import build_actor, build_critic


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_what_matches_anywhere_in_a_name_is_frozen() -> None:
    model = tiny_causal_lm(layers=1)
    names = {name for name, _ in model.named_parameters()}
    # 64 x 64 of the embedding, and q_proj: 2 heads x 32 from 64
    told = freeze(model, r"embed|q_proj")
    assert names - trained(model) == {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"}
    left = sum(p.numel() for p in model.parameters()) - 2 * 64 * 64
    assert told == f"freeze='embed|q_proj': frozen 8,192 parameters, trained {left:,}"


@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens"])
def test_a_tied_parameter_is_frozen_under_either_name_counted_once_and_told(pattern: str) -> None:
    model = tiny_causal_lm(tie=True)
    told = freeze(model, pattern)
    assert "model.embed_tokens.weight" not in trained(model) and "frozen 4,096 parameters" in told
    assert told.endswith("; model.embed_tokens.weight and lm_head.weight are one tensor")


def test_adapters_of_what_matches_keep_their_start() -> None:
    model = tiny_lora(tiny_causal_lm())
    before = trained(model)
    freeze(model, r"layers\.0\.|o_proj\.weight$")
    assert before - trained(model) == {name for name in before if "layers.0." in name or "o_proj" in name}
    with pytest.raises(ModelError, match="'lm_head' matches no name of a parameter that Qwen3ForCausalLM trains"):
        freeze(tiny_lora(tiny_causal_lm()), "lm_head")  # LoRA has frozen it


def test_nothing_and_everything_are_refused_and_change_nothing() -> None:
    model = tiny_causal_lm()
    for pattern, words in (("visual", "matches no name"), ("", "matches every parameter"), (r"^", "nothing would be left")):
        with pytest.raises(ModelError, match=words) as refused:
            freeze(model, pattern)
        assert "\n" not in str(refused.value) and all(p.requires_grad for p in model.parameters())


def test_the_actor_is_frozen_before_it_is_wrapped_and_the_critic_is_trained_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tiny_model_folder(tmp_path / "model"))
    config = make_config({"strategy": "single", "engine_type": "hf", "model_name_or_path": folder, "freeze": "embed"})
    strategy = get_strategy(config)
    actor, optimizer = build_actor(config, strategy, model_path=folder)
    assert "freeze='embed': frozen" in capsys.readouterr().out
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained(actor)) == len(list(actor.parameters())) - 1
    critic, _ = build_critic(config, strategy, model_path=folder)
    assert all(p.requires_grad for p in critic.parameters())
