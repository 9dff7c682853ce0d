"""The messages of a whole step, rollout to sync, counted on two ranks: the same for any micro-batches, samples and settings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from lightrft.testing.collectives import CountedCollectives
from lightrft.testing.small_trainer import make_trainer
from lightrft.testing.spmd import run_spmd

PLAIN: dict[str, Any] = {"max_steps": 2, "eval_prompts": ()}
SAME: list[dict[str, Any]] = [
    {"micro_train_batch_size": 1},  # thrice the micro-batches
    {"n_samples_per_prompt": 8, "train_batch_size": 16},  # twice the sequences, as many optimizer steps
    {"advantage_estimator": "rloo", "entropy_coef": 0.01, "fused_linear_logprob": True, "eps_clip_high": 0.28},
]


def counted(variants: list[dict[str, Any]]) -> list[dict[str, int]]:
    """Collectives of each run by name."""
    found = []
    for changes in variants:
        trainer = make_trainer(Path(tempfile.mkdtemp()), strategy="sharded", **PLAIN | changes)
        with CountedCollectives() as count:
            trainer.fit()
        found.append(dict(count.calls))
    return found


@pytest.mark.long  # five runs on two ranks
def test_a_step_has_the_same_messages_whatever_its_size() -> None:
    one, plain, *others = run_spmd(counted, 2, [{"max_steps": 1}, {}, *SAME], timeout_s=240)[0]
    assert sum(plain.values()) > sum(one.values()) > 50  # the optimizer of `sharded` has a few for each parameter
    for changes, found in zip(SAME, others, strict=True):
        assert found == plain, changes
