"""Every way in has the same lock: what the command line refuses, `train`, `evaluate` and a script refuse, before a model loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightrft.cli.settings import checked
from lightrft.config.load import make_config
from lightrft.errors import ConfigError
from lightrft.plugins.registry import Registry
from lightrft.rewards.trial import loading_problems, tried_apart
from lightrft.strategy.factory import get_strategy
from lightrft.testing.fake_strategy import fake_registry
from lightrft.trainer.bisect_command import bisect
from lightrft.trainer.invariance_command import check_invariance
from lightrft.trainer.run import evaluate, open_run, train

BAD = [
    ({"rollout_batch_size": 4, "n_samples_per_prompt": 8, "train_batch_size": 100}, "does not divide the samples of one rollout"),
    ({"keep_best": 2}, "keep_best=2 has no effect with save_every=0"),
    ({"kl_in": "reward"}, "kl_in='reward' has no effect with kl_coef=0.0"),
    ({"reward": ["code"]}, "reward='code' runs programs that the model wrote; set --allow_code_execution"),
    ({"reward": ["exact_mach"]}, "unknown reward 'exact_mach'; did you mean 'exact_match'"),
    ({"eval_data": "nowhere.jsonl"}, "eval_data='nowhere.jsonl': no such file or folder"),
    ({"resume_from": "latest"}, "resume_from='latest': no checkpoint"),
    ({"label_key": "anwser"}, "no column 'anwser'"),
]


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    """Of a run whose model does not exist: to load it would be another error."""
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": str(n), "answer": "1"}) + "\n" for n in range(4)))
    good = {
        "strategy": "fake", "engine_type": "fake", "model_name_or_path": "owner/no-such-model", "prompt_data": str(folder / "rows.jsonl"),
        "output_dir": str(folder / "run"), "logprob_gap_prompts": 0, "verify_sync_every": 0, "plot_every": 0,
    }  # fmt: skip
    return good | changes


def by_script(config: Any, *, registry: Any) -> None:
    open_run(config, get_strategy(config, registry=registry))


@pytest.mark.parametrize("door", [train, by_script])
@pytest.mark.parametrize(("changes", "words"), BAD)
def test_what_is_refused(door: Any, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        door(make_config(values(tmp_path, **changes)), registry=fake_registry())
    assert [line for line in caught.value.problems if words in line], caught.value.problems
    assert not (tmp_path / "run").exists()


def test_a_function_that_runs_programs_is_refused_by_every_name(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise RuntimeError('no such luck')\n")
    for door in (train, by_script):
        with pytest.raises(ConfigError, match=r"cannot be imported: RuntimeError: no such luck, at .*fails.py:1 in <module>"):
            door(make_config(values(tmp_path, reward=[f"{tmp_path / 'fails.py'}:f"])), registry=fake_registry())


def test_the_other_jobs_have_theirs(tmp_path: Path) -> None:
    config = make_config(values(tmp_path, prompt_data="nowhere.jsonl", eval_data="nowhere.jsonl"))
    for door in (evaluate, bisect, check_invariance):
        with pytest.raises(ConfigError, match="nowhere.jsonl'?: no such file"):
            door(config, registry=fake_registry())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nothing_of_that_name\n", "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name', at .*r.py:1"),
        ("import os\nos._exit(0)\n", r"r.py:f' ended the process that imported it \(exit code 0\)"),
        ("import sys\nsys.exit('bye')\n", r"it called sys.exit\('bye'\), at .*r.py:2"),
        ("def g(samples):\n    return []\n", "has no 'f'"),
    ],
)
def test_rewards_are_loaded_before_ranks_start_in_a_process_of_their_own(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(text)
    settings = values(tmp_path, reward=[f"{tmp_path / 'r.py'}:f"], strategy="single", engine_type="hf")
    with pytest.raises(ConfigError, match=words):
        checked(settings, problems=[], mode="train", world_size=1)


def test_a_good_reward_says_nothing_and_core_s_own_need_no_process(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("print('loud')\ndef f(samples):\n    return []\n")
    config = make_config({"reward": [f"{tmp_path / 'r.py'}:f", "exact_match"]})
    assert tried_apart(config) == loading_problems(config, registry=Registry.discover()) == []
    assert tried_apart(make_config({"reward": ["exact_match", "http://127.0.0.1:9/score"]})) == []
