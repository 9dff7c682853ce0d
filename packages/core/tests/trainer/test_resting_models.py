"""A run whose frozen models rest in host memory is the run without, and they travel once for each of their passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lightrft.strategy import resting
from lightrft.testing.small_trainer import make_trainer
from lightrft.testing.tiny import tiny_reward_folder


def run(folder: Path, *, rests: bool, judge: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The trained parameters, and what rewards and reference gave."""
    made: list[Any] = []

    def judged(samples: Any) -> list[float]:
        """A function of one's own that goes through a frozen model by itself, outside of any block."""
        ids = torch.tensor([[len(sample.completion) % 20] for sample in samples] or [[1]])
        with torch.no_grad():
            return [float(value) for value in made[0](input_ids=ids).logits[:, 0]][: len(samples)]

    settings: dict[str, Any] = {"kl_coef": 0.1, "offload_frozen": rests}
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    strategy = make_trainer(folder / "other", **settings).strategy
    made.append(strategy.prepare_model(AutoModelForSequenceClassification.from_pretrained(judge)))
    made[0].config.pad_token_id = 0
    trainer = make_trainer(folder, reward=[judged, strategy.prepare_model(model)], eval_prompts=(), **settings)
    # The reward model is the other strategy's, as one that a script prepared; the trainer's own asks it.
    trainer.rewards[1].function.strategy = strategy
    trainer.fit()
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {name: row[name] for name in ("reward/judged", "reward/rm", "rollout/kl", "train/loss", "train/ratio")}
        for row in rows
        if row["step"]
    ]
    return {name: p.detach().clone() for name, p in trainer.actor.named_parameters()}, kept


def test_the_run_is_the_same_and_each_pass_moves_its_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = tiny_reward_folder(tmp_path / "rm", alphabet="0123456789 =+", seed=3)
    begins: list[int] = []
    begin = resting.Rest.begin

    def noted(self: resting.Rest, model: Any) -> None:
        begins.append(id(model)) if not self._at_work else None
        begin(self, model)

    monkeypatch.setattr(resting.Rest, "begin", noted)
    usual, rows = run(tmp_path / "usual", rests=False, judge=judge)
    assert begins == []
    found, told = run(tmp_path / "resting", rests=True, judge=judge)
    assert sorted(begins.count(model) for model in set(begins)) == [2, 2, 2]  # two steps; reference, function's model, reward model
    assert all(torch.equal(found[name], value) for name, value in usual.items())
    assert told == rows and len(rows) == 2
