"""The name by which metrics, the console and the data call a reward."""

from __future__ import annotations

import pytest

from lightrft.config import make_config
from lightrft.config.metric_names import never_logged
from lightrft.config.reward_checks import check_rewards
from lightrft.config.reward_names import called, reward_function
from lightrft.plugins.registry import Registry
from lightrft.trainer.resume import user_files


@pytest.mark.parametrize(
    ("reward", "name", "place"),
    [
        ("exact_match", "exact_match", None),
        ("my/rewards.py:length", "length", "my/rewards.py:length"),
        ("short=my/rewards.py:length", "short", "my/rewards.py:length"),
        ("short=package.module:length", "short", "package.module:length"),
        ("trl:package.module:length", "length", "package.module:length"),
        ("short=verl:my/rewards.py:length", "short", "my/rewards.py:length"),
        ("my/rewards.py:reward", "rewards.reward", "my/rewards.py:reward"),  # `eval/reward` is the sum
        ("package.module:overlong", "module.overlong", "package.module:overlong"),
        ("runs/lr=3/r.py:f", "f", "runs/lr=3/r.py:f"),
        ("judge=model:some/folder", "judge", None),
        ("judge=http://host:80/score", "judge", None),
        ("http://host:80/score", "host:80/score", None),
    ],
)
def test_a_reward_has_a_short_name(reward: str, name: str, place: str | None) -> None:
    found = reward_function(reward)
    assert (called(reward), found.place if found else None) == (name, place)


def problems(*rewards: str, **settings: object) -> list[str]:
    return list(check_rewards(make_config({"reward": list(rewards), **settings}), registry=Registry.discover()))


def test_one_name_for_two_rewards_is_refused_with_the_form() -> None:
    (found,) = problems("json:dumps", "x=json.encoder:dumps", "pickle:dumps")
    assert found.startswith("two rewards are called 'dumps'; give them names of their own: name=file.py:function, ")
    assert problems("json:dumps", "other=pickle:dumps") == []


def test_a_name_of_another_metric_is_refused() -> None:
    (found,) = problems("length_mean=json:dumps")
    assert (
        found
        == "reward='length_mean=json:dumps' is called 'length_mean', which other metrics are called; give it a name of its own: name=..."
    )


def test_the_best_metric_and_the_watched_files_follow_the_name() -> None:
    config = make_config({"reward": ["exact_match", "short=my/rewards.py:length"], "eval_data": "e.jsonl"})
    assert never_logged("eval/short", config, has_critic=False) == ""
    assert "there is no reward 'length'" in never_logged("eval/length", config, has_critic=False)
    files = user_files(make_config({"reward": ["a=trl:x/y.py:f", "m:f", "exact_match"], "environment": "games/maze.py:Maze"}))
    assert [str(path) for path in files] == ["x/y.py", "games/maze.py"]
