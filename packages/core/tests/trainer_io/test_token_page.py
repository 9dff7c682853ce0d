"""Samples token by token: the file has what was trained, and the page shows whose each token is, how likely and to be taught what."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.batch.collect import Conversation, conversations_of
from lightrft.batch.stages import Trainable
from lightrft.cli.report import write_report
from lightrft.run.run_data import read_run
from lightrft.run.run_folder import open_run_folder
from lightrft.run.token_page import token_page, turns_of
from lightrft.run.token_rows import token_rows
from lightrft.testing.small_trainer import make_trainer

TEXTS = {3: "<b>", 4: " x", 5: "\n", 6: ""}


def trainable(*, has_logprobs: bool) -> Trainable:
    """One episode: a prompt of 2 tokens, 2 sampled, 1 told, 1 sampled."""
    told = Conversation(
        prompt_token_ids=[3, 4], token_ids=[5, 3, 4, 6], sampled=[True, True, False, True],
        logprobs=[-0.123456, -2.0, 0.0, -9.0] if has_logprobs else None, versions=[1] * 4, finish_reason="stop",
    )  # fmt: skip
    batch = conversations_of([told], group_ids=[0], samples=[None])  # type: ignore[list-item]  # nobody reads it
    one, values = torch.ones(1), torch.tensor([0.0, 0.0, -1.5, float("nan"), 0.0, -3.0])
    return batch.as_stage(
        Trainable, rewards=one, baselines=one, trains=one.bool(), old_logprobs=values, reference_logprobs=values, values=values,
        corrections=values, advantages=torch.tensor([0.0, 0.0, 0.5, -0.25, 0.0, 1.0]), returns=values,
    )  # fmt: skip


def test_a_row_by_hand() -> None:
    row = {"left_out": 0, "texts": ["<b>", " x", "\n", "<b>", " x", ""], "sampled": "001101", "advantages": [0.5, -0.25, 1.0]}
    assert token_rows(trainable(has_logprobs=True), 0, text_of=TEXTS.__getitem__) == row | {"logprobs": [-0.1235, -2.0, -9.0]}
    assert token_rows(trainable(has_logprobs=False), 0, text_of=TEXTS.__getitem__) == row | {"logprobs": [-1.5, None, -3.0]}


def test_of_a_long_sequence_the_last_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightrft.run.token_rows.MAX_TOKENS", 3)
    row = token_rows(trainable(has_logprobs=True), 0, text_of=TEXTS.__getitem__)
    assert (row["left_out"], row["sampled"], row["logprobs"], row["advantages"]) == (3, "101", [-2.0, -9.0], [-0.25, 1.0])


def test_turns_are_told_by_the_mask() -> None:
    assert list(turns_of("001101")) == [("prompt", 0, 2), ("policy", 2, 4), ("environment", 4, 5), ("policy", 5, 6)]
    assert list(turns_of("11")) == [("policy", 0, 2)] and list(turns_of("")) == []


def page_of(folder: Path, *rows: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return token_page(read_run(folder))


def test_a_page_by_hand(tmp_path: Path) -> None:
    tokens = token_rows(trainable(has_logprobs=True), 0, text_of=TEXTS.__getitem__)
    text = page_of(tmp_path, {"step": 3, "reward": 0.5, "finish_reason": "stop", "answer": "<7>", "tokens": tokens})
    assert "rollout 3 · reward 0.5 · stop · answer &lt;7&gt;" in text
    spans = re.findall(r"<div class='turn'><span>(\w+)<br>(\d) tokens?</span><p>(.*?)</p>", text, re.DOTALL)
    assert [(who, int(count)) for who, count, _ in spans] == [("prompt", 2), ("policy", 2), ("environment", 1), ("policy", 1)]
    assert spans[0][2] == "<span class='t'>&lt;b&gt;</span><span class='t'> x</span>"
    assert spans[1][2] == (
        "<span class='t s l0 p2' title='log-prob -0.1235 · advantage 0.5'>↵\n</span>"
        "<span class='t s l2 n1' title='log-prob -2 · advantage -0.25'>&lt;b&gt;</span>"
    )
    assert spans[3][2] == "<span class='t s l4 p4' title='log-prob -9 · advantage 1'>∅</span>"
    assert "<script" not in text and "http" not in text and "src=" not in text


def test_rows_of_older_runs_and_rows_without_numbers_have_their_place(tmp_path: Path) -> None:
    bare = {"texts": ["a", "b"], "sampled": "01", "logprobs": [None], "advantages": [0.0], "left_out": 7}
    text = page_of(tmp_path, {"step": 1, "reward": 1.0}, {"step": 2, "reward": None, "tokens": bare, "env_error": "step: <oops>"})
    assert "1 of 1 samples" in text and "7 tokens before these are left out" in text and "step: &lt;oops&gt;" in text
    assert "<span class='t s u' title='log-prob - · advantage 0'>b</span>" in text
    assert write_report(str(tmp_path), out=None)["tokens"] == str(tmp_path / "report-tokens.html")
    page_of(tmp_path / "older", {"step": 1, "reward": 1.0, "prompt": "a", "completion": "b"})
    assert write_report(str(tmp_path / "older"), out=None)["tokens"] is None


def test_a_run_leaves_its_samples_token_by_token(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, save_samples=16, engine_type="hf", max_steps=1, logprob_gap_prompts=4)
    open_run_folder(trainer.config, backend={})
    trainer.fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    for row in rows:
        tokens = row["tokens"]
        begin = tokens["sampled"].index("1")
        assert "".join(tokens["texts"][:begin]) == row["prompt"]
        assert len(tokens["logprobs"]) == len(tokens["advantages"]) == row["num_tokens"] == tokens["sampled"].count("1")
        assert all(value < 0 for value in tokens["logprobs"])
    assert len({value for row in rows for value in row["tokens"]["advantages"]}) > 1
