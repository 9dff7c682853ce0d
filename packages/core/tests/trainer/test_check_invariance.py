"""The check of a recipe's update sees one that depends on how the batch is dealt out, and passes one that does not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.experience import scorer
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_model_folder
from lightrft.trainer import update
from lightrft.trainer.invariance import rows_of_rank, splits
from lightrft.trainer.invariance_command import check_invariance


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    data = folder / "data.jsonl"
    data.write_text("".join(f'{{"prompt": "{i} + {i} =", "answer": "{2 * i}"}}\n' for i in range(5)))
    model = tiny_model_folder(folder / "base", alphabet="0123456789 =+", vocab_size=16)
    values: dict[str, Any] = dict(
        strategy="fake", engine_type="hf", model_name_or_path=str(model), prompt_data=str(data), prompt_max_len=16, generate_max_len=8,
        n_samples_per_prompt=3, micro_train_batch_size=8, logprob_gap_prompts=0,
    )  # fmt: skip
    return check_invariance(make_config(values | changes), registry=fake_registry())


@pytest.mark.parametrize(
    "changes", [{}, {"advantage_estimator": "gae"}, {"advantage_estimator": "remax", "kl_coef": 0.1}], ids=["grpo", "ppo", "remax with KL"]
)
def test_an_honest_update(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = run(tmp_path, **changes)
    assert found["invariant"] and found["completions"] == 15
    assert [row["micro_train_batch_size"] for row in found["splits"]] == [8, 1, 2, 4]
    assert 0 < max(row["difference"] for row in found["splits"]) <= 5e-6


def test_a_mean_of_micro_batches_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def local(mask: torch.Tensor, **_: Any) -> torch.Tensor:
        return mask / mask.sum()

    monkeypatch.setattr(update, "token_weights", local)
    found = run(tmp_path)
    assert not found["invariant"]
    assert max(row["difference"] for row in found["splits"]) > 0.1


@pytest.mark.parametrize("old", ["of the update", "of other micro-batches"])
def test_old_log_probs_that_are_not_the_update_s_own_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    if old != "of the update":
        score = scorer.Scorer._logprobs

        def elsewhere(self: Any, batch: Any, parts: Any, batching: Any, *temperatures: float) -> Any:
            return [column * 1.01 for column in score(self, batch, parts, batching, *temperatures)]

        monkeypatch.setattr(scorer.Scorer, "_logprobs", elsewhere)
    found = run(tmp_path, policy_loss="gspo")
    assert found["invariant"] and found["loss_aggregation"] == "sequence_mean"
    assert found["on_policy"] == (old == "of the update")
    assert (found["first_ratio_error"] == 0.0 and found["first_clip_fraction"] == 0.0) == found["on_policy"]
    assert found["on_policy"] or (0.01 < found["first_ratio_error"] < 0.1 and found["first_clip_fraction"] > 0.2)


def test_every_spread_deals_out_every_group_once() -> None:
    groups = torch.tensor([0, 0, 1, 2, 2, 2])
    for cut in splits(make_config({}), world_size=2):
        ranks = [rows_of_rank(groups, cut.spread, rank=rank, world_size=2).tolist() for rank in range(2)]
        assert sorted([*ranks[0], *ranks[1]]) == list(range(6))
    assert rows_of_rank(groups, "one rank", rank=1, world_size=2).tolist() == []
    assert rows_of_rank(groups, "dealt", rank=0, world_size=2).tolist() == [2]
