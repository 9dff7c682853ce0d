"""The table of metrics is true: all that is logged is in it, and all that is in it is logged."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lightrft
from lightrft.config.checks import check
from lightrft.config.load import make_config
from lightrft.config.metric_names import METRICS, metric_named, never_logged
from lightrft.errors import ConfigError
from lightrft.observe.phase_clock import PHASES
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.small_trainer import make_trainer, prompts

SOURCES = Path(lightrft.__file__).parent
GROUPS = "rollout|episode|partial|sync|compile|reward|sampling|verify|train|critic|eval|source|time|memory|tokens"
MADE_BY_PATTERN = {
    *(
        "not_applicable/NAME",
        "reward/NAME",
        "eval/NAME",
        "eval/SET/NAME",
        "eval/pass@K",
        "eval/maj@K",
        "eval/avg@K",
        "eval/reward",
        "eval/length_mean",
    ),
    *("source/SET/fraction", "source/SET/reward"),
    "partial/lag/K",
    *("time/PHASE_s", "memory/PHASE_gib", "tokens/PHASE"),
}


def names_in_sources() -> set[str]:
    """Every text in the sources, but the table's, that has the form of a metric's name."""
    found = set()
    for path in SOURCES.rglob("*.py"):
        if path.name != "metric_names.py" and "testing" not in path.parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            found |= {text for text in texts if re.fullmatch(rf"({GROUPS})/[a-z_]+", text)}
    return found


def test_every_name_that_the_sources_use_is_in_the_table() -> None:
    unknown = {name for name in names_in_sources() if (metric := metric_named(name)) is None or metric.name in ("reward/NAME", "eval/NAME")}
    assert unknown == set()


def test_every_row_of_the_table_is_made_by_the_sources() -> None:
    assert {metric.name for metric in METRICS} - names_in_sources() - MADE_BY_PATTERN == set()
    assert len({metric.name for metric in METRICS}) == len(METRICS)


EVERYTHING: dict[str, Any] = dict(
    engine_type="hf", verify_sync_every=1, logprob_gap_prompts=1, logprob_gap_action="warn", eval_every=1, eval_n=2, save_every=1,
    plot_every=1, dynamic_sampling=True, rollout_batch_size=2, train_batch_size=8, kl_coef=0.1, kl_target=1.0, entropy_coef=0.01,
    overlong_buffer=4, overlong_filter=True,
)  # fmt: skip


def test_all_that_a_run_with_everything_on_logs_is_in_the_table(tmp_path: Path) -> None:
    two = [replace(prompt, source=name) for name in ("easy", "hard") for prompt in prompts(3)]
    make_trainer(
        tmp_path, train_prompts=two, eval_prompts={"a": prompts(2), "b": prompts(3)}, prompt_data="easy.jsonl,hard.jsonl", **EVERYTHING
    ).fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {name for row in rows for name in row} - {"step"}
    assert [name for name in logged if metric_named(name) is None] == []
    made = {metric.name for name in logged if (metric := metric_named(name)) is not None}
    without = {
        metric.name
        for metric in METRICS
        if metric.needs in ("critic", "compile", "environment", "images_key", "max_version_lag", "router_balance_coef")
    } | {
        "not_applicable/NAME",
        "rollout/unrewarded",
    }
    without |= {"rollout/special_tokens"}  # this tokenizer has no tags
    assert {metric.name for metric in METRICS} - made == without
    assert {name for name in logged if name.startswith("time/")} >= {f"time/{phase}_s" for phase in PHASES}


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("eval/rewrd", {}, "eval_data"),
        ("rollout/rewrd", {}, "no run logs it; did you mean 'rollout/reward'?"),
        ("train/kl", {}, "it needs kl_coef"),
        ("eval/reward", {}, "it needs eval_data, which is not set"),
        ("critic/loss", {}, "it needs a critic, which advantage_estimator='grpo' does not use"),
        ("eval/maths", {"eval_data": "e.jsonl", "reward": ["math"]}, "there is no reward 'maths'; did you mean 'eval/math'?"),
        ("eval/rewrd", {"eval_data": "e.jsonl"}, "there is no reward 'rewrd'; did you mean 'eval/reward'?"),
        ("eval/pass@4", {"eval_data": "e.jsonl"}, "it needs eval_n"),
        ("source/hard/reward", {"prompt_data": "hard.jsonl"}, "it needs several sources in prompt_data"),
        ("source/hart/reward", {"prompt_data": "easy.jsonl,hard.jsonl"}, "there is no source 'hart'; did you mean 'hard'? (easy, hard)"),
        ("source/hard/reward", {"prompt_data": ["easy.jsonl", "hard.jsonl"]}, ""),
        ("rollout/reward", {}, ""),
        ("eval/math", {"eval_data": "e.jsonl", "reward": ["math"]}, ""),
    ],
)
def test_a_metric_that_is_never_logged_is_known_before_the_run(name: str, settings: dict[str, Any], reason: str) -> None:
    found = never_logged(name, make_config(settings), has_critic=False)
    assert reason in found and bool(reason) == bool(found)


def test_a_best_metric_that_is_never_logged_is_refused(tmp_path: Path) -> None:
    config = make_config({"strategy": "fake", "engine_type": "fake", "save_every": 1, "keep_best": 1, "best_metric": "evl/reward"})
    with pytest.raises(ConfigError) as caught:
        check(config, registry=fake_registry(), world_size=1)
    [line] = [line for line in caught.value.problems if "best_metric" in line]
    assert line == "best_metric='evl/reward': no run logs it; did you mean 'eval/reward'? (docs/reference/metrics.md lists all)"
