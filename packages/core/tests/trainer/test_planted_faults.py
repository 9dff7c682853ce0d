"""Each planted fault is told in words, on the console and in the run's warnings; a run without one is silent."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.diagnostics.monitors import Monitors
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.fake_engine import VOCAB_SIZE
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.trainer import SPMDPPOTrainer
from lightrft.types import Sample

ALPHABET = "0123456789 =+"  # with pad, end and unknown: the fake engine's 16 tokens
STEPS = 8


def odd_tokens(samples: Sequence[Sample]) -> list[float]:
    return [float(len(s.completion) % 2) for s in samples]


def prompts(numbers: Sequence[int]) -> list[Prompt]:
    tokenizer = tiny_tokenizer(ALPHABET)
    texts = [f"{number} + {number} =" for number in numbers]
    return [Prompt(index=i, text=text, token_ids=tuple(tokenizer(text)["input_ids"]), answer="1", row={}) for i, text in enumerate(texts)]


class Planted(SPMDPPOTrainer):
    """Its metrics are changed as `plant` says, by step."""

    plant: Callable[[int], dict[str, float]] = staticmethod(lambda step: {})

    def ppo_train(self, global_steps: int = 0) -> dict[str, float]:
        return super().ppo_train(global_steps) | self.plant(global_steps)


def run(
    folder: Path, *, reward: Any = odd_tokens, plant: Any = None, eval_numbers: Sequence[int] = (7, 8), **changes: Any
) -> list[dict[str, Any]]:
    """The warnings of a run, after it was made sure that file, summary and console agree about them."""
    values: dict[str, Any] = dict(
        strategy="fake", engine_type="fake", output_dir=str(folder / "run"), logprob_gap_prompts=0, verify_sync_every=0,
        prompt_max_len=16, generate_max_len=8, rollout_batch_size=2, n_samples_per_prompt=4, train_batch_size=8,
        learning_rate=1e-3, num_episodes=10, max_steps=STEPS, plot_every=0, loggers=["jsonl"], seed=1, dead_reward_steps=2, monitor_steps=3,
    )  # fmt: skip
    config = make_config(values | changes)
    strategy = get_strategy(config, registry=fake_registry())
    model_folder = tiny_model_folder(folder / "base", alphabet=ALPHABET, vocab_size=VOCAB_SIZE, seed=2)
    strategy.setup_inference_engine(config, engine_type=config.engine_type, model_path=str(model_folder))
    actor, optimizer = strategy.prepare_trainable(
        tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE), optimizer=AdamWSettings(learning_rate=config.learning_rate)
    )
    trainer = Planted(
        strategy=strategy, actor=actor, reward_model=reward, actor_optim=optimizer, tokenizer=tiny_tokenizer(ALPHABET),
        prompts=prompts(range(4)), eval_prompts=prompts(eval_numbers),
    )  # fmt: skip
    if plant is not None:
        trainer.plant = plant
    rows: list[dict[str, Any]] = trainer.fit()["warnings"]
    file = folder / "run" / "warnings.jsonl"
    assert ([json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []) == rows
    return rows


def test_a_run_with_dynamic_sampling_and_overlong_treatment(tmp_path: Path) -> None:
    changes: dict[str, Any] = dict(overlong_filter=True, overlong_buffer=4, balance_ranks=True, dynamic_sampling=True, engine_type="hf")
    run(tmp_path, **changes, engine_sleep_level=2, dynamic_sampling_tries=3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "sampling/rollouts" in row]
    assert len(rows) == STEPS and all(1 <= row["sampling/rollouts"] <= 3 for row in rows)
    assert all(-1 <= row["reward/overlong"] <= 0 and row["rollout/left_out"] == row["rollout/truncated"] for row in rows)
    assert any(row["rollout/left_out"] > 0 for row in rows)


def by_prompt(samples: Sequence[Sample]) -> list[float]:
    return [float(s.prompt[0]) for s in samples]


def by_prompt_group(samples: Sequence[Sample]) -> list[float]:
    """The same within each rollout group and yet a function of the completion: no prompt-only reward."""
    seen: dict[str, float] = {}
    return [seen.setdefault(s.prompt, float(len(s.completion))) for s in samples]


def test_a_run_without_a_fault_warns_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == [] and "WARNING: " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words", "step", "changes"),
    [
        ("constant_reward", "reward is 0.5 for all 16 completions of the last 2 rollouts", 2, {"reward": lambda s: [0.5] * len(s)}),
        ("prompt_only_reward", "reward sees the prompt only", 2, {"reward": by_prompt}),
        ("zero_variance", "no group has two different rewards in the last 2 rollouts", 2, {"reward": by_prompt_group}),
        (
            "length_explosion",
            "length explosion: completions have 90 tokens in the mean, 15.0 times the 6 of the first 3 rollouts",
            5,
            {"plant": lambda step: {"rollout/length_mean": 6.0 if step < 5 else 90.0}},
        ),
        (
            "length_collapse",
            "length collapse: completions have 2.0 tokens in the mean, the first 3 rollouts had 6.0",
            4,
            {"plant": lambda step: {"rollout/length_mean": 6.0 if step < 4 else 2.0}},
        ),
        (
            "entropy_collapse",
            "entropy collapse: 0.0100 nats per token, 1.0% of the first 3 rollouts' 1.0000",
            6,
            {"plant": lambda step: {"rollout/entropy": 1.0 if step < 4 else 0.01}},
        ),
        ("kl_blow_up", "KL blow-up: the actor is 7 nats per token from", 4, {"plant": lambda s: {"train/kl": float(s > 3) * 7}}),
        (
            "critic_useless",
            "critic explains nothing: explained variance -0.30, below zero for 3 rollouts",
            3,
            {"plant": lambda step: {"critic/explained_variance": -0.3}},
        ),
        (
            "evaluation_leak",
            "evaluation leaks into training: 1 of 2 evaluation prompts are also training prompts, the first is '3 + 3 ='",
            0,
            {"eval_numbers": (9, 3)},
        ),
    ],
)  # fmt: skip
def test_a_planted_fault_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str, step: int, changes: dict[str, Any]
) -> None:
    [row] = run(tmp_path, **changes)
    assert (row["name"], row["step"]) == (name, step) and row["text"].startswith(words)
    assert capsys.readouterr().out.count(f"WARNING: {row['text']}") == 1


def test_a_fault_that_went_away_and_came_back_is_told_again(tmp_path: Path) -> None:
    rows = run(tmp_path, plant=lambda step: {"train/kl": 9.0 if step in (2, 3, 6) else 0.0})
    assert [row["step"] for row in rows] == [2, 6]


@pytest.mark.parametrize("name", ["demo", "ppo", "reinforce_pp"])
def test_runs_that_learned_raise_no_alarm(name: str) -> None:
    """Metrics of whole runs: the demo with vLLM, two tiny recipes; their entropy falls to a fifth, and the critic begins as a constant."""
    recorded: dict[str, list[float | None]] = json.loads(Path(__file__).with_name("recorded_runs.json").read_text())[name]
    monitors = Monitors(make_config({}), first_ratio_limit=0.02)
    steps = [dict(zip(recorded, values, strict=True)) for values in zip(*recorded.values(), strict=True)]
    assert len(steps) > 50 and [monitors.observe({k: v for k, v in step.items() if v is not None}) for step in steps] == [[]] * len(steps)
    worse = [{"rollout/entropy": (step["rollout/entropy"] or 0.0) / (1 + number)} for number, step in enumerate(steps)]
    assert [one for step in worse for one in monitors.observe(step)], "the watches were awake"
