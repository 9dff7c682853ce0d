"""The engine holds exactly the actor after every sync. FSDP2 on two and four real ranks, `hf` alone on each and one for two."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.experience.pipeline import ExperienceMaker
from lightrft.models.load import load_causal_lm, load_tokenizer
from lightrft.rewards.load import NamedReward
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_model_folder
from lightrft.types import EngineStatus

GREEDY = {"temperature": 0.0, "max_new_tokens": 6}


def settings(folder: str, *, tp: int, level: int) -> Any:
    return make_config(
        {
            "fsdp": True, "engine_type": "hf", "engine_tp_size": tp, "engine_sleep_level": level, "model_name_or_path": folder,
            "prompt_max_len": 16, "generate_max_len": 8, "n_samples_per_prompt": 2, "logprob_gap_prompts": 4, "learning_rate": 1e-2,
            "weight_bucket_mb": 1, "logprob_gap_action": "stop", "logprob_gap_threshold": 1e-5, "micro_rollout_batch_size": 3,
        }
    )  # fmt: skip


def train_a_step(strategy: StrategyBase, actor: Any, optimizer: Any) -> None:
    ids = torch.tensor([[3, 4, 5, 6 + strategy.world.rank]])
    strategy.backward(actor(input_ids=ids).logits.logsumexp(-1).sum() / 8, actor, optimizer)
    strategy.optimizer_step(optimizer, actor, None, name="actor")


def differing(strategy: StrategyBase, actor: Any) -> list[str]:
    """Names of the engine's parameters that are not bitwise the actor's; [] on ranks without an engine."""
    full = {name: weight.tensor.clone() for bucket in strategy.export_weights(actor) for weight in bucket for name in weight.names}
    engine: Any = strategy.inference_engine
    return [] if engine is None else [name for name, p in engine.model.named_parameters() if not torch.equal(p, full[name])]


def on_ranks(folder: str, tp: int, level: int) -> dict[str, Any]:
    config = settings(folder, tp=tp, level=level)
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config, engine_type="hf")
    actor, optimizer = strategy.prepare_trainable(load_causal_lm(folder, dtype=torch.float32), optimizer=AdamWSettings(learning_rate=1e-2))
    tokenizer = load_tokenizer(folder)
    maker = ExperienceMaker(
        strategy=strategy, config=config, tokenizer=tokenizer, actor=actor, initial_model=None,
        rewards=[NamedReward(name="length", function=lambda samples: [float(len(s.completion)) for s in samples])],
        advantage_estimator=strategy.registry.load("advantage", "grpo"),
    )  # fmt: skip
    mine = [Prompt(index=i, text="", token_ids=(5, 6 + i), answer=None, row={}) for i in range(strategy.world.rank + 1)]
    gaps, wrong, greedy = [], [], []
    for _ in range(3):
        strategy.update_engine_weights(actor)
        wrong += differing(strategy, actor)
        maker.score(maker.reward(maker.generate(mine)), seed=0)
        found = maker.metrics.reduce(strategy.world.group)
        gaps.append(found["rollout/logprob_gap"])
        status = strategy.inference_engine_status
        train_a_step(strategy, actor, optimizer)
        strategy.update_engine_weights(actor)
        wrong += differing(strategy, actor)
        outputs = strategy.gather_and_generate(GREEDY, all_prompt_token_ids=[[7, 8, 9 + strategy.world.rank]])
        greedy.append(list(outputs[0].completions[0].token_ids))
    version, has_engine = strategy.weight_version, strategy.inference_engine is not None
    strategy.shutdown()
    return {"gaps": gaps, "wrong": wrong, "greedy": greedy, "status": status, "version": version, "has_engine": has_engine}


@pytest.mark.parametrize(("world", "tp", "level"), [(2, 1, 1), (2, 2, 2), (4, 2, 1)])
def test_the_engine_is_the_actor_after_every_sync(tmp_path: Path, world: int, tp: int, level: int) -> None:
    folder = str(tiny_model_folder(tmp_path / "model", tie=True))
    found = run_spmd(on_ranks, world, folder, tp, level, timeout_s=180)
    assert [f["wrong"] for f in found] == [[]] * world
    assert max(gap for f in found for gap in f["gaps"]) < 1e-5
    assert all(f["status"] is EngineStatus.ASLEEP and f["version"] == 6 for f in found)
    assert [f["has_engine"] for f in found] == [rank % tp == 0 for rank in range(world)]
    one = run_spmd(on_ranks, world, folder, 1, 1, timeout_s=180) if tp > 1 else found
    assert [f["greedy"] for f in found] == [f["greedy"] for f in one], "who shares an engine does not change what is sampled"
