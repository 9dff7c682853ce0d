"""A run keeps the moving average of its actor: by every step, in its checkpoints, and as a folder at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightrft.run.checkpoint_folder import folder_of
from lightrft.strategy.strategy_base import StepResult
from lightrft.testing.fake_engine import VOCAB_SIZE
from lightrft.testing.small_trainer import make_trainer, odd_tokens
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.trainer import SPMDPPOTrainer

BETA = 0.9


def spied(trainer: SPMDPPOTrainer) -> list[list[torch.Tensor]]:
    """The actor's weights after each optimizer step, in float64."""
    seen: list[list[torch.Tensor]] = []
    step: Any = trainer.strategy._step

    def spying(*args: Any) -> StepResult:
        result: StepResult = step(*args)
        seen.append([p.detach().double().clone() for p in trainer.actor.parameters()])
        return result

    trainer.strategy._step = spying  # type: ignore[method-assign]
    return seen


def test_it_follows_every_optimizer_step_and_is_a_folder_at_the_end(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ema_beta=BETA)
    assert trainer.ema_model is not None
    expected = [p.detach().double().clone() for p in trainer.ema_model.parameters()]
    seen = spied(trainer)
    summary = trainer.fit()
    assert len(seen) == 4, "two rollouts of two steps"
    for weights in seen:
        expected = [BETA * mine + (1 - BETA) * theirs for mine, theirs in zip(expected, weights, strict=True)]
    for parameter, wanted in zip(trainer.ema_model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), wanted, rtol=0, atol=5e-7)  # four roundings of float32 near 1
    assert summary["ema_model_dir"] == str(tmp_path / "run" / "ema_model")
    loaded = AutoModelForCausalLM.from_pretrained(summary["ema_model_dir"]).state_dict()
    assert all(torch.equal(loaded[name], p) for name, p in trainer.ema_model.named_parameters())
    moved = [(p - q).abs().max() for p, q in zip(trainer.ema_model.parameters(), trainer.actor.parameters(), strict=True)]
    assert max(moved) > 1e-4, "it is not the actor"


def test_a_skipped_step_does_not_move_it(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ema_beta=BETA)
    trainer.strategy._step = lambda *args: StepResult(grad_norm=float("nan"), skipped=True)  # type: ignore[method-assign]
    assert trainer.ema_model is not None
    before = [p.clone() for p in trainer.ema_model.parameters()]
    with torch.no_grad():
        for p in trainer.actor.parameters():
            p.add_(1.0)
    trainer.fit()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.ema_model.parameters(), strict=True))


def test_a_resumed_run_has_it_bit_by_bit(tmp_path: Path) -> None:
    changes: dict[str, Any] = dict(ema_beta=BETA, max_steps=4, num_episodes=9, save_every=2, keep_checkpoints=0)
    whole = make_trainer(tmp_path / "whole", **changes)
    whole.fit()
    step = folder_of(tmp_path / "whole" / "run", 2)
    assert {path.name for path in step.iterdir()} == {"actor", "ema_model", "trainer.json"}
    resumed = make_trainer(tmp_path / "resumed", **changes, resume_from=str(step))
    resumed.fit()
    for name in ("actor", "ema_model"):
        pairs = zip(getattr(resumed, name).parameters(), getattr(whole, name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name


def test_what_would_not_be_moved_or_cannot_be_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    ema = trainer.strategy.prepare_ema_model(tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE))
    wider = trainer.strategy.prepare_ema_model(tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE + 3))
    moving = trainer.config.model_copy(update={"ema_beta": BETA})

    def build(**arguments: Any) -> SPMDPPOTrainer:
        common: dict[str, Any] = dict(
            strategy=trainer.strategy, actor=trainer.actor, reward_model=odd_tokens, actor_optim=trainer.actor_optim,
            tokenizer=trainer.tokenizer, prompts=trainer.prompts,
        )  # fmt: skip
        return SPMDPPOTrainer(**common | arguments)

    with pytest.raises(ValueError, match="ema_model was given, but ema_beta=0 never moves it"):
        build(ema_model=ema)
    with pytest.raises(ValueError, match=r"ema_beta=0.9 moves an average of the actor; pass ema_model"):
        build(config=moving)
    with pytest.raises(ValueError, match="ema_model cannot follow the actor: it is another model than the actor: 2 parameters differ"):
        build(config=moving, ema_model=wider)
    assert build(config=moving, ema_model=ema).ema_model is ema
