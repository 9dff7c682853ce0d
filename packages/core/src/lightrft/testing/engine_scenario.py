"""A strategy and an engine together on real ranks. Generate, train a step, sync, generate again, judged by transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lightrft.config.load import make_config
from lightrft.models.load import load_causal_lm
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.judge import greedy_tokens, logprob_error
from lightrft.types import EngineStatus

NEW_TOKENS = 6


@dataclass(frozen=True)
class ScenarioResult:
    """What one rank saw. `wrong` names prompts whose greedy tokens are not those of transformers with the actor's weights."""

    wrong: list[str]
    logprob_error: float
    num_prompts: int
    version: int
    status: EngineStatus
    group_works_after: bool
    sampled: list[list[int]]


def scenario(folder: str, settings: dict[str, Any], num_syncs: int = 2) -> ScenarioResult:
    """For `run_spmd`. `folder` is a tiny model; `settings` choose strategy, engine and `engine_tp_size`. Ranks bring 0, 1, 2... prompts,
    one of them longer than a block of a prefix cache and asked again after every sync.
    """
    config = make_config({"model_name_or_path": folder, "prompt_max_len": 224, "generate_max_len": 32, "weight_bucket_mb": 1} | settings)
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    actor, optimizer = strategy.prepare_trainable(load_causal_lm(folder, dtype=torch.float32), optimizer=AdamWSettings(learning_rate=2e-2))
    rank = strategy.world.rank
    prompts = [[5, 6, 7 + i] for i in range(rank)] + ([[3 + (7 * i) % 50 for i in range(200)]] if rank % 2 == 0 else [])
    wrong, error, sampled = [], 0.0, []
    for sync in range(num_syncs + 1):
        if sync:
            _step(strategy, actor, optimizer)
            strategy.update_engine_weights(actor)
        judge = judge_of(strategy, actor, folder)
        outputs = strategy.gather_and_generate(
            {"temperature": 0.0, "max_new_tokens": NEW_TOKENS}, all_prompt_token_ids=prompts, logprobs=True
        )
        for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
            [completion] = output.completions
            if list(completion.token_ids) != greedy_tokens(judge, prompt, max_new_tokens=NEW_TOKENS):
                wrong.append(f"sync {sync}, rank {rank}, prompt {index}")
            error = max(error, logprob_error(judge, output, completion))
        drawn = strategy.gather_and_generate({"n": 2, "max_new_tokens": NEW_TOKENS}, all_prompt_token_ids=prompts)
        sampled += [list(c.token_ids) for output in drawn for c in output.completions]
    version, status = strategy.weight_version, strategy.inference_engine_status
    strategy.shutdown_inference_engine()
    works = strategy.all_reduce(1.0, "sum") == strategy.world.world_size
    strategy.shutdown()
    return ScenarioResult(
        wrong=wrong, logprob_error=error, num_prompts=len(prompts), version=version, status=status,
        group_works_after=works, sampled=sampled,
    )  # fmt: skip


def judge_of(strategy: StrategyBase, actor: torch.nn.Module, folder: str) -> Any:
    """A plain transformers model with the actor's present weights, on the CPU. Collective."""
    values = {name: w.tensor.cpu().clone() for bucket in strategy.export_weights(actor) for w in bucket for name in w.names}
    judge = load_causal_lm(folder, dtype=torch.float32).train(False)
    judge.load_state_dict(values)
    return judge


def _step(strategy: StrategyBase, actor: Any, optimizer: Any) -> None:
    ids = torch.tensor([[3, 4, 5, 6 + strategy.world.rank]], device=strategy.world.device)
    strategy.accumulate([ids], lambda batch: actor(input_ids=batch).logits.float().logsumexp(-1).sum() / 8, actor, optimizer)
    result = strategy.optimizer_step(optimizer, actor, None, name="actor")
    assert not result.skipped
