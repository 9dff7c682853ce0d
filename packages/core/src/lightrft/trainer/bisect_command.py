"""From a run's configuration to the search for the reason of a mismatch. Strategy, engine and actor as `train` builds them."""

from __future__ import annotations

from typing import Any

import torch

from lightrft.config.schema import Config
from lightrft.diagnostics.mismatch_bisect import Bisector, Verdict
from lightrft.models.load import load_tokenizer
from lightrft.plugins.registry import Registry
from lightrft.strategy.factory import get_strategy
from lightrft.trainer.build import build_actor, read_prompts
from lightrft.trainer.run import admit
from lightrft.types import SamplingParams

NUM_PROMPTS = 8
NEW_TOKENS = 16
LEARNING_RATE = 5e-3
"""Of the one step that changes the actor: far more than rounding, whatever the run's own is."""


def bisect(config: Config, *, registry: Registry | None = None) -> dict[str, Any]:
    """The verdict as plain data, the same on every rank. Every rank of the world calls it; nothing is written."""
    strategy = get_strategy(config, registry=registry)
    admit(config, strategy, mode="bisect")
    # A check at the sync would end the search before it has begun.
    strategy.setup_inference_engine(config.model_copy(update={"verify_sync_every": 0}), engine_type=config.engine_type)
    tokenizer = load_tokenizer(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
    prompts = read_prompts(config, config.prompt_data, tokenizer=tokenizer, strategy=strategy, limit=NUM_PROMPTS).prompts
    own = config.model_copy(update={"learning_rate": LEARNING_RATE})
    actor, optimizer = build_actor(own, strategy, model_path=config.model_name_or_path)
    ids = torch.tensor([prompts[0].token_ids], device=strategy.world.device)

    def nudge() -> None:
        fraction = 1.0 / strategy.world.world_size
        strategy.accumulate([ids], lambda batch: actor(input_ids=batch).logits.float().logsumexp(-1).mean() * fraction, actor, optimizer)
        strategy.optimizer_step(optimizer, actor, None, name="actor", max_norm=1.0)

    sampling = SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_new_tokens=min(NEW_TOKENS, config.generate_max_len),
        ignore_eos=True,
        seed=config.seed,
    )
    verdict = Bisector(
        strategy=strategy,
        actor=actor,
        tokenizer=tokenizer,
        prompts=prompts,
        nudge=nudge,
        sampling=sampling,
        micro_batch_size=config.micro_rollout_batch_size,
    ).run()
    strategy.shutdown()
    return as_data(verdict)


def as_data(verdict: Verdict) -> dict[str, Any]:
    """For a table and for JSON."""
    rows = [
        {
            "name": experiment.name,
            "mean": None if experiment.gap is None else experiment.gap.mean,
            "max": None if experiment.gap is None else experiment.gap.largest,
            "note": experiment.note,
        }
        for experiment in verdict.experiments
    ]
    return {"cause": verdict.cause, "detail": verdict.detail, "experiments": rows}
