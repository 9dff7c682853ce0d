"""The smallest run of the whole trainer. Six prompts, a tiny actor, the fakes; for tests of the loop and of what plugs into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.fake_engine import VOCAB_SIZE
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.trainer import SPMDPPOTrainer
from lightrft.types import Sample

ALPHABET = "0123456789 =+"
"""With pad, end and unknown: the fake engine's 16 tokens."""


def odd_tokens(samples: Sequence[Sample]) -> list[float]:
    """1 for a completion of odd length."""
    return [float(len(s.completion) % 2) for s in samples]


def prompts(count: int = 6) -> list[Prompt]:
    """`0 + 0 =`, `1 + 1 =`, ... with their answers."""
    tokenizer = tiny_tokenizer(ALPHABET)
    texts = [f"{index} + {index} =" for index in range(count)]
    return [
        Prompt(index=i, text=text, token_ids=tuple(tokenizer(text)["input_ids"]), answer=str(2 * i), row={}) for i, text in enumerate(texts)
    ]


def config_of(folder: Path, **changes: Any) -> Config:
    """The settings of a run of two steps in `folder`."""
    values: dict[str, Any] = dict(
        strategy="fake", engine_type="fake", output_dir=str(folder / "run"), logprob_gap_prompts=0, verify_sync_every=0,
        prompt_max_len=16, generate_max_len=8,
        rollout_batch_size=4, n_samples_per_prompt=4, train_batch_size=8, micro_train_batch_size=3, learning_rate=1e-2, max_steps=2,
        plot_every=0,
        loggers=["jsonl"], seed=1,
    )  # fmt: skip
    return make_config(values | changes)


def make_trainer(
    folder: Path,
    *,
    reward: Any = odd_tokens,
    registry: Any = None,
    cls: type[SPMDPPOTrainer] = SPMDPPOTrainer,
    phases: Any = None,
    train_prompts: Sequence[Prompt] | None = None,
    eval_prompts: Any = None,
    callbacks: Any = (),
    **changes: Any,
) -> SPMDPPOTrainer:
    """A trainer of two steps in `folder`: strategy and engine `fake` (any of `registry`), `changes` are settings."""
    config = config_of(folder, **changes)
    strategy = get_strategy(config, registry=registry or fake_registry())
    model_folder = tiny_model_folder(folder / "base", alphabet=ALPHABET, vocab_size=VOCAB_SIZE, seed=2)
    strategy.setup_inference_engine(config, engine_type=config.engine_type, model_path=str(model_folder))
    actor, optimizer = strategy.prepare_trainable(
        tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE), optimizer=AdamWSettings(learning_rate=config.learning_rate)
    )
    initial = strategy.prepare_model(tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE)) if config.kl_coef else None
    ema = strategy.prepare_ema_model(tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE)) if config.ema_beta else None
    return cls(
        strategy=strategy,
        ema_model=ema,
        actor=actor,
        initial_model=initial,
        reward_model=reward,
        actor_optim=optimizer,
        tokenizer=tiny_tokenizer(ALPHABET),
        prompts=prompts() if train_prompts is None else train_prompts,
        eval_prompts=prompts(3) if eval_prompts is None else eval_prompts,
        phases=phases,
        callbacks=callbacks,
    )
