"""Episodes of one to five turns with a tool: on 2 and 4 ranks of each backend, packed and shared rows among them, the run is that of one
process, and the engine's log-probs are the trainer's over all sampled tokens. The same where the template writes earlier turns anew."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lightrft.config.load import make_config
from lightrft.demo.calculator import CHAT_TEMPLATE, Calculator, tokenizer_with_tools
from lightrft.models.scratch import scratch_model
from lightrft.rollout.environment import End, Step, ToolCall, Turn
from lightrft.testing import run_spmd
from lightrft.trainer.run import train

TURNS = (5, 1, 3, 5, 2, 4, 5, 1)
COMPARED = ("rollout/reward", "train/loss", "train/grad_norm", "rollout/kl", "episode/turns", "episode/env_tokens", "episode/contexts")
FSDP, ZERO_2 = {"strategy": "fsdp"}, {"strategy": "deepspeed", "zero_stage": 2}
PACKED = {"packing_samples": True, "max_tokens_per_micro_batch": 160}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp packed, 2 ranks": (2, FSDP | PACKED),
    "fsdp packed and shared, 4 ranks": (4, FSDP | PACKED | {"sp_size": 2}),
    "fsdp shared, 2 ranks": (2, FSDP | {"sp_size": 2}),
    "fsdp padded, 4 ranks": (4, FSDP),
    "zero 2 packed, 2 ranks": (2, ZERO_2 | PACKED),
    "zero 2 shared, 4 ranks": (4, ZERO_2 | {"sp_size": 2}),
}
SPLIT: dict[str, Any] = {"rewritten_turns": "split", "model": "short"}
CASES |= {f"split, {name}": (CASES[name][0], CASES[name][1] | SPLIT) for name in list(CASES)[:4]}
KEEPS, SHORTENS = "turn.content or ''", "(turn.content or '')[-20:]"
"""What a template writes of a turn."""

REWARD = "def odd(samples):\n    return [float(len(s.token_ids) % 3) + sum(s.token_ids) % 2 for s in samples]\n"


class Multiplies(Calculator):
    """Takes every turn for a call of the tool, with numbers of its tokens, until as many turns are over as the row says."""

    def start(self, row: Mapping[str, Any]) -> None:
        self.turns = row["turns"]

    def step(self, turn: Turn) -> Step | Awaitable[Step]:
        if turn.number + 1 == self.turns:
            return End(info=dict(self.counts))
        call = ToolCall(name="multiply", arguments={"a": sum(turn.token_ids), "b": 10**turn.number})
        return super().step(replace(turn, calls=(call,)))


def run(folder: Path, name: str, *, model: str = "model", **changes: Any) -> None:
    train(make_config({
        "engine_type": "hf", "loggers": ["jsonl"], "plot_every": 0, "max_steps": 2, "seed": 3, "apply_chat_template": True,
        "environment": f"{__file__}:Multiplies", "max_turns": 5, "turn_max_len": 6, "label_key": "",
        "model_name_or_path": str(folder / model), "prompt_data": str(folder / "rows.jsonl"), "reward": [f"{folder}/reward.py:odd"],
        "prompt_max_len": 32, "generate_max_len": 120, "rollout_batch_size": 8, "n_samples_per_prompt": 2, "train_batch_size": 16,
        "micro_train_batch_size": 1, "micro_rollout_batch_size": 4, "learning_rate": 1e-3, "kl_coef": 0.05, "logprob_gap_prompts": 8,
        "save_samples": 16, "output_dir": str(folder / name), **changes,
    }))  # fmt: skip


def on_these_ranks(where: str, name: str, changes: dict[str, Any]) -> None:
    run(Path(where), name, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("episodes")
    tokenizer = tokenizer_with_tools()
    model = scratch_model(tokenizer, layers=2, hidden=64, heads=2, kv_heads=2, seed=3)
    for name, written in (("model", KEEPS), ("short", SHORTENS)):
        tokenizer.chat_template = CHAT_TEMPLATE.replace(KEEPS, written)
        model.save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    rows = [{"prompt": f"{10 + 3 * at} * {7 * at % 90}", "turns": TURNS[at % len(TURNS)]} for at in range(16)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "reward.py").write_text(REWARD)
    run_spmd(on_these_ranks, 1, str(path), "one", {"strategy": "single"}, timeout_s=300)
    run_spmd(on_these_ranks, 1, str(path), "split, one", {"strategy": "single", **SPLIT}, timeout_s=300)
    return path


def steps(run_folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if COMPARED[0] in row]


def curve(run_folder: Path) -> list[float]:
    return [row[name] for row in steps(run_folder) for name in COMPARED]


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_the_run_is_that_of_one_process(folder: Path, case: str) -> None:
    ranks, settings = CASES[case]
    one = "split, one" if settings.get("rewritten_turns") else "one"
    run_spmd(on_these_ranks, ranks, str(folder), case, settings, timeout_s=500)
    assert curve(folder / case) == pytest.approx(curve(folder / one), rel=2e-4, abs=1e-6)
    gaps = [row["rollout/logprob_gap_max"] for row in steps(folder / case)]
    assert len(gaps) == 2 and max(gaps) < 1e-5
    mine, theirs, before = (load_file(folder / name / "model.safetensors") for name in (f"{case}/model", f"{one}/model", "model"))
    assert mine.keys() == theirs.keys()
    assert max(float((theirs[name] - before[name]).abs().max()) for name in theirs) > 1e-3
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 3e-5


@pytest.mark.long
def test_what_the_tool_said_is_no_token_of_the_policys(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "one" / "samples.jsonl").read_text().splitlines()]
    assert {len(row["turns"]) for row in rows} == {2 * turns - 1 for turns in TURNS}
    assert all(row["num_tokens"] <= 6 * (len(row["turns"]) + 1) // 2 for row in rows)


@pytest.mark.long
def test_each_turn_but_the_first_has_a_context_that_is_written_anew(folder: Path) -> None:
    assert [row["episode/contexts"] for row in steps(folder / "one")] == [1.0, 1.0]
    turns = [row["episode/turns"] for row in steps(folder / "split, one")]
    assert [row["episode/contexts"] for row in steps(folder / "split, one")] == turns
    assert sum(turns) == 2 * sum(TURNS) / len(TURNS)
