"""Steps that do not wait for their longest answer, with any engine on real ranks: a whole run, and what it has to add up to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lightrft.config.load import make_config
from lightrft.models.scratch import char_tokenizer, scratch_model
from lightrft.rollout.environment import Continue, End, Environment, Step, Turn
from lightrft.trainer.run import train

PROMPTS, STEPS, BATCH, SAMPLES = 24, 4, 4, 2

EPISODES: dict[str, Any] = {"environment": f"{__name__}:Talks", "max_turns": 3, "turn_max_len": 6}
"""Settings with which `partial_run` plays episodes."""


class Talks(Environment):
    """One to three turns, as the first of them says."""

    def step(self, turn: Turn) -> Step:
        if turn.number == 0:
            self.last = turn.token_ids[0] % 3
        return End(reward=1.0) if turn.number == self.last else Continue(text=f"{turn.number}+{turn.number}=", info={"at": turn.number})


def partial_folder(path: Path) -> Path:
    """A tiny model, its rows and their reward in `path`."""
    rows = [{"prompt": f"{at:02d}+{at % 7}="} for at in range(PROMPTS)]
    tokenizer = char_tokenizer([row["prompt"] for row in rows])
    scratch_model(tokenizer, layers=2, hidden=64, heads=2, kv_heads=2, seed=3).save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "reward.py").write_text("def odd(samples):\n    return [float(s.num_tokens % 2) for s in samples]\n")
    return path


def partial_run(folder: str, settings: dict[str, Any]) -> None:
    """For `run_spmd`: a few steps in `folder`/run, with half as many prompts again in flight and one update of lag."""
    here = Path(folder)
    train(make_config({
        "model_name_or_path": str(here / "model"), "prompt_data": str(here / "rows.jsonl"), "label_key": "",
        "output_dir": str(here / "run"), "reward": [f"{here}/reward.py:odd"], "loggers": ["jsonl"], "plot_every": 0, "max_steps": STEPS,
        "seed": 3, "prompt_max_len": 8, "generate_max_len": 24, "slice_max_len": 4, "oversample": 1.5, "max_version_lag": 1,
        "rollout_batch_size": BATCH, "n_samples_per_prompt": SAMPLES, "train_batch_size": BATCH * SAMPLES, "micro_train_batch_size": 2,
        "micro_rollout_batch_size": 8, "learning_rate": 3e-2, "save_samples": BATCH * SAMPLES, **settings,
    }))  # fmt: skip


def partial_problems(folder: Path, *, world: int) -> list[str]:
    """What does not add up in the run that `partial_run` left in `folder`; the samples there are those of its first rank of `world`."""
    rows = [row for row in _lines(folder / "run" / "metrics.jsonl") if "partial/slices" in row]
    prompts = Counter(row["prompt"] for row in _lines(folder / "run" / "samples.jsonl"))
    found = [f"{len(rows)} steps, not {STEPS}"] if len(rows) != STEPS else []
    for row in rows:
        by_lag, tokens = [row["partial/lag/0"], row["partial/lag/1"]], row["rollout/length_mean"] * BATCH * SAMPLES
        if sum(by_lag) != tokens:
            found.append(f"step {row['step']}: tokens by lag {by_lag}, and {tokens} of all answers")
        if row["partial/in_flight"] != BATCH / 2:
            found.append(f"step {row['step']}: {row['partial/in_flight']} prompts stay in flight, not {BATCH / 2}")
        if row["rollout/logprob_gap_max"] >= 1e-5:
            found.append(f"step {row['step']}: tokens of the present weights are {row['rollout/logprob_gap_max']} from the trainer's")
    if rows and (rows[0]["partial/lag/1"] or not any(row["partial/lag/1"] and row["partial/ess"] < 1 for row in rows[1:])):
        found.append(f"tokens of older weights: {[row['partial/lag/1'] for row in rows]}, ess {[row['partial/ess'] for row in rows]}")
    if len(prompts) != STEPS * BATCH // world or set(prompts.values()) != {SAMPLES}:
        found.append(f"answers by prompt, where each has {SAMPLES}: {dict(prompts)}")
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
