"""The balance of experts in the loss: numbers by hand, its gradient against transformers for every partition, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.algorithms.ppo_clip import ppo_clip
from lightrft.batch.stages import Trainable
from lightrft.config.algorithm_checks import algorithm_problems
from lightrft.config.checks import compile_problem
from lightrft.config.load import make_config
from lightrft.errors import ModelError
from lightrft.models.router_balance import Route, balance, routers_of
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.architectures import make_model
from lightrft.testing.batches import batch_of
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.trainer.model_folders import _trained
from lightrft.trainer.update import PolicyUpdate

PAIRS = [([3, 4], [12, 13, 14, 1]), ([5, 6, 7], [2]), ([8], [15, 16]), ([9, 10], [3, 3, 3, 3, 3, 3])]
COEF, EXPERTS, CHOSEN = 0.5, 4, 2
ODDS = math.log(3.0)
"""Of two experts with probabilities 0.75 and 0.25."""


def test_two_sequences_by_hand() -> None:
    logits = torch.tensor([[9.0, 9.0], [ODDS, 0.0], [0.0, ODDS], [9.0, -9.0], [ODDS, 0.0], [ODDS, 0.0]], requires_grad=True)
    chosen = torch.tensor([[1], [0], [1], [1], [0], [0]])
    at, rows = torch.tensor([1, 2, 4, 5]), torch.tensor([0, 0, 1, 1])  # the tokens 0 and 3 are prompts
    found = balance([Route(logits, chosen)], at=at, rows=rows, num_sequences=3)  # the third sequence has no tokens
    # first: f = P = (1/2, 1/2), 2 (1/4 + 1/4) = 1; second: f = (1, 0), P = (3/4, 1/4), 2 x 3/4 = 3/2
    assert found.item() == pytest.approx(1.0 + 1.5)
    found.backward()
    # second: d(2 P_0) / d logit_0 of each of two tokens = 2 / 2 x 3/4 x 1/4; first: both experts weigh the same, so nothing moves
    step = 3 / 16
    expected = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [step, -step], [step, -step]])
    assert torch.allclose(logits.grad, expected, atol=1e-7)


def test_it_is_the_mean_over_routers() -> None:
    even, one = torch.zeros(1, 2), torch.tensor([[ODDS, 0.0]])
    routes = [Route(even, torch.tensor([[0]])), Route(one, torch.tensor([[0]]))]
    found = balance(routes, at=torch.tensor([0]), rows=torch.tensor([0]), num_sequences=1)
    assert found.item() == pytest.approx((2 * 0.5 + 2 * 0.75) / 2)


def gradient(**settings: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    base = {"strategy": "fake", "engine_type": "fake", "max_norm": 0.0, "train_batch_size": 4, "router_balance_coef": COEF}
    strategy = get_strategy(make_config(base | settings), registry=fake_registry())
    model, optimizer = strategy.prepare_trainable(make_model("qwen3-moe"), optimizer=AdamWSettings(learning_rate=1e-3))
    old = [torch.full((len(completion),), -1.0) for _, completion in PAIRS]
    rows = batch_of(Trainable, PAIRS, reasons=["stop"] * 4, old_logprobs=old, reference_logprobs=old, advantages=[0.0] * 4)
    seen: dict[str, torch.Tensor] = {}
    step: Any = strategy._step

    def spying(*args: Any) -> Any:
        seen.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        return step(*args)

    strategy._step = spying  # type: ignore[method-assign]
    update = PolicyUpdate(strategy=strategy, config=strategy.config, actor=model, optimizer=optimizer, scheduler=None, policy_loss=ppo_clip)
    return seen, update.run(rows, seed=0)


def by_transformers() -> tuple[dict[str, torch.Tensor], float]:
    """Each sequence alone, from the router logits that transformers gives."""
    model = make_model("qwen3-moe")
    total = torch.zeros((), dtype=torch.float32)
    for prompt, completion in PAIRS:
        routers = model(input_ids=torch.tensor([[*prompt, *completion]]), output_router_logits=True).router_logits
        for logits in routers:
            probabilities = logits[len(prompt) - 1 : -1].softmax(-1)
            picked = torch.zeros_like(probabilities).scatter(1, probabilities.topk(CHOSEN).indices, 1.0)
            total = total + EXPERTS * (picked.mean(0) / CHOSEN * probabilities.mean(0)).sum() / len(routers)
    mean = total / len(PAIRS)
    (COEF * mean).backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}, float(mean.detach())


@pytest.mark.parametrize(
    "settings",
    [
        {"micro_train_batch_size": 1},
        {"micro_train_batch_size": 3},
        {"micro_train_batch_size": 4},
        {"packing_samples": True, "max_tokens_per_micro_batch": 16},
        {"micro_train_batch_size": 4, "gradient_checkpointing": True},
    ],
)
def test_its_gradient_is_that_of_each_sequence_alone_for_every_partition(settings: dict[str, Any]) -> None:
    found, metrics = gradient(**settings)
    expected, mean = by_transformers()
    assert metrics["train/router_balance"] == pytest.approx(mean, rel=1e-5) and metrics["train/loss"] == pytest.approx(
        COEF * mean, rel=1e-5
    )
    assert any("gate.weight" in name and float(g.abs().max()) > 1e-4 for name, g in expected.items())
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) < 2e-6, name


def test_without_a_coefficient_nothing_is_computed() -> None:
    _, metrics = gradient(router_balance_coef=0.0)
    assert "train/router_balance" not in metrics and metrics["train/loss"] == 0.0


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(ModelError, match="router_balance_coef: Qwen3ForCausalLM has no routers; leave it out"):
        routers_of(tiny_causal_lm())


def test_deepseeks_routers_are_refused() -> None:
    import transformers

    sizes: dict[str, Any] = dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=0, n_group=1, topk_group=1, q_lora_rank=8,
        kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**sizes))
    with pytest.raises(ModelError, match="has routers of class DeepseekV3TopkRouter, balanced by a bias; leave it out"):
        routers_of(model)


def test_shared_sequences_and_compiled_blocks_are_refused() -> None:
    config = make_config({"router_balance_coef": 0.1, "sp_size": 2})
    [told] = [line for line in algorithm_problems(config, fake_registry()) if "router_balance_coef" in line]
    assert told.endswith("and sp_size=2 divides them among ranks; leave one of the two out")
    assert compile_problem(config.model_copy(update={"sp_size": 1, "fsdp": True})) == (
        "router_balance_coef=0.1 reads the routers inside of each block"
    )


def test_a_folder_without_experts_is_refused_before_ranks_start(tmp_path: Path) -> None:
    tiny_causal_lm().save_pretrained(tmp_path)
    config = make_config({"model_name_or_path": str(tmp_path), "router_balance_coef": 0.1})
    assert _trained(config) == "router_balance_coef: Qwen3ForCausalLM has no routers; leave it out"
