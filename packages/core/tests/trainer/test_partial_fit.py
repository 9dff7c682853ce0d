"""A whole run with partial rollouts: what it takes, that it resumes to the last bit, and that two ranks take every prompt once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.batch.stages import Sampled
from lightrft.data.prompts import Prompt
from lightrft.rollout.environment import Continue, End, Environment, Step, Turn
from lightrft.run.checkpoint_folder import folder_of
from lightrft.testing import run_spmd
from lightrft.testing.fake_engine import VOCAB_SIZE
from lightrft.testing.small_trainer import ALPHABET, make_trainer
from lightrft.testing.tiny import tiny_model_folder
from lightrft.trainer import SPMDPPOTrainer

PARTIAL: dict[str, Any] = dict(
    engine_type="hf", max_steps=4, num_episodes=9, oversample=1.5, max_version_lag=2, slice_max_len=1, generate_max_len=6, save_every=2,
    keep_checkpoints=0, n_samples_per_prompt=2, train_batch_size=4, micro_train_batch_size=2,
)  # fmt: skip

EPISODES = {"environment": f"{__name__}:Talks", "max_turns": 3, "turn_max_len": 2, "generate_max_len": 10, "ignore_eos": True}


class Talks(Environment):
    """One to three turns, as the first of them says."""

    def step(self, turn: Turn) -> Step:
        if turn.number == 0:
            self.last = turn.token_ids[0] % 3
        return End(reward=float(turn.text[:1].isdigit())) if turn.number == self.last else Continue(text=f" {turn.number}", info={"at": 1})


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/")) and k != "rollout/tokens_per_s"} for row in found]


class Recording(SPMDPPOTrainer):
    """Remembers what each of its rollouts gave."""

    def rollout(self, prompts: Sequence[Prompt]) -> Sampled:
        batch = super().rollout(prompts)
        self.taken = [*getattr(self, "taken", []), batch]
        return batch


@pytest.mark.parametrize("changes", [{}, EPISODES], ids=["answers", "episodes"])
def test_a_run_trains_what_went_on_and_resumes_to_the_last_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    expected: Any = make_trainer(tmp_path / "whole", cls=Recording, **PARTIAL | changes)
    expected.fit()
    taken = expected.taken
    logged = rows(tmp_path / "whole")[1:]
    assert [len(batch) for batch in taken] == [8] * 4 and [row["partial/in_flight"] for row in logged] == [2] * 4
    groups = [group for batch in taken for group in batch.group_ids.tolist()]
    assert sorted(set(groups)) == sorted(groups[::2]), "no prompt is taken twice"
    assert max(row["partial/lag_max"] for row in logged) in (1.0, 2.0) and 0 < logged[1]["partial/ess"] < 1
    assert all(row["rollout/logprob_gap_max"] < 1e-5 for row in logged), "the gap is that of the present weights"
    if changes:
        assert all(1 < row["episode/turns"] < 3 and row["episode/env_error"] == 0 for row in logged)
    again = PARTIAL | changes | {"resume_from": str(folder_of(tmp_path / "whole" / "run", 2))}
    resumed = make_trainer(tmp_path / "resumed", **again)
    resumed.fit()
    for mine, other in zip(resumed.actor.state_dict().values(), expected.actor.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    assert rows(tmp_path / "resumed") == rows(tmp_path / "whole")


def on_ranks(folder: Path, changes: dict[str, Any]) -> list[tuple[list[int], int]]:
    """The groups that this rank trained in each step, and how many sequences it had."""
    settings = PARTIAL | {"strategy": "sharded", "output_dir": str(folder / "run"), "max_steps": 3} | changes
    trainer: Any = make_trainer(folder / os.environ["RANK"], cls=Recording, **settings)
    trainer.fit()
    return [(batch.group_ids.tolist()[::2], len(batch)) for batch in trainer.taken]


@pytest.mark.parametrize("changes", [{}, EPISODES], ids=["answers", "episodes"])
def test_two_ranks_share_what_is_finished_and_take_every_prompt_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    for rank in range(2):  # transformers writes a model's files on rank 0 alone
        tiny_model_folder(tmp_path / str(rank) / "base", alphabet=ALPHABET, vocab_size=VOCAB_SIZE, seed=2)
    first, second = run_spmd(on_ranks, 2, tmp_path, changes, timeout_s=300)
    assert [number for _, number in first + second] == [4] * 6
    begun = 0
    groups: list[int] = []
    for (mine, _), (other, _) in zip(first, second, strict=True):
        begun += 6 if not begun else 4
        groups += mine + other
        assert len(set(groups)) == len(groups) and max(groups) < begun
    assert len(groups) == 12
