"""Every way of naming a reward finds it; every wrong name gets its remedy."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from lightrft.errors import PluginNotInstalledError, RewardError
from lightrft.plugins.registry import PluginEntry, Provider, Registry
from lightrft.plugins.specs import RewardSpec
from lightrft.rewards.exact_match import exact_match
from lightrft.rewards.load import NamedReward, load_rewards

PROVIDER = Provider(distribution="lightrft", version="0", entry_point="lightrft")
SPEC = RewardSpec(name="exact_match", target="lightrft.rewards.exact_match:exact_match")
REGISTRY = Registry([PluginEntry(provider=PROVIDER, spec=SPEC)])

FILE = """
from dataclasses import dataclass

@dataclass
class Point:
    x: int

def length(samples):
    return [len(s.completion) for s in samples]

number = 5
"""


def load_one(name: str) -> NamedReward:
    (found,) = load_rewards([name], weights=[], registry=REGISTRY)
    return found


def message(names: list[str], weights: list[float] | None = None) -> str:
    with pytest.raises(RewardError) as caught:
        load_rewards(names, weights=weights or [], registry=REGISTRY)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_plugin_name_module_and_file_with_weights(tmp_path: Path) -> None:
    path = tmp_path / "my rewards.py"
    path.write_text(FILE)
    names = ["exact_match", "f=lightrft.rewards.exact_match:exact_match", f"{path}:length"]
    found = load_rewards(names, weights=[1, 0.5, -2.0], registry=REGISTRY)
    assert [r.name for r in found] == ["exact_match", "f", "length"] and [r.weight for r in found] == [1.0, 0.5, -2.0]
    assert found[0].function is found[1].function is exact_match
    assert found[2].function.__name__ == "length"


def test_without_weights_all_are_one() -> None:
    assert load_one("exact_match").weight == 1.0


def test_a_relative_path_counts_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    assert load_one("r.py:length").function is not None


def test_classes_of_a_file_can_be_pickled(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(FILE)
    length: Any = load_one(f"{tmp_path / 'r.py'}:length").function
    point = length.__globals__["Point"]
    assert pickle.loads(pickle.dumps(point(3))) == point(3)


def test_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text(f"def f(samples):\n    return [{folder!r}]\n")
    first, second = load_rewards([f"{tmp_path}/a/r.py:f", f"other={tmp_path}/b/r.py:f"], weights=[], registry=REGISTRY)
    assert [first.function([]), second.function([])] == [["a"], ["b"]]


def test_unknown_plugin_is_the_registrys_error_with_the_nearest() -> None:
    with pytest.raises(PluginNotInstalledError, match="unknown reward 'exact_mach'; did you mean 'exact_match'"):
        load_one("exact_mach")


def test_missing_module_file_and_attribute(tmp_path: Path) -> None:
    assert "reward 'no_such.thing:f': no module 'no_such' on the import path; install it" in message(["no_such.thing:f"])
    assert "no module 'lightrft.nothing'" in message(["lightrft.nothing:f"])
    assert f"no file '{tmp_path}/x.py' (looked in " in message([f"{tmp_path}/x.py:f"])
    (tmp_path / "r.py").write_text(FILE)
    assert message([f"{tmp_path}/r.py:lenght"]).endswith("r.py has no 'lenght'; did you mean 'length'?")
    assert message([f"{tmp_path}/r.py:zzz"]).endswith("r.py has no 'zzz' (functions there: dataclass, Point, length)")


@pytest.mark.parametrize("name", [":f", "module:", ":"])
def test_half_a_name(name: str) -> None:
    assert message([name]) == f"reward {name!r} is not of the form 'module:function' or 'path/to/file.py:function'"


def test_a_class(tmp_path: Path) -> None:
    """Calling it would make an object, and no number."""
    (tmp_path / "r.py").write_text(FILE)
    told = message([f"{tmp_path}/r.py:Point"])
    assert "is a class, not a function (samples) -> list of numbers; where its objects are such functions, make one at the top" in told


def test_not_callable(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(FILE)
    assert message([f"{tmp_path}/r.py:number"]).endswith("is 5, a int, not a function (samples) -> list of numbers")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import no_such_thing", "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def f(:", "cannot be imported: SyntaxError: invalid syntax"),
    ],
)
def test_a_module_or_file_that_fails_is_chained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    (tmp_path / "broken_reward.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in (f"{tmp_path}/broken_reward.py:f", "broken_reward:f"):
        with pytest.raises(RewardError) as caught:
            load_one(name)
        assert expected in str(caught.value) and caught.value.__cause__ is not None


def test_wrong_weights_and_a_name_twice() -> None:
    assert "reward 'exact_match' is named twice" in message(["exact_match", "exact_match"])
    assert "reward_weights has 2 numbers for 1 rewards (exact_match); give one each" in message(["exact_match"], [1.0, 2.0])
    assert "reward_weights holds nan; every weight must be a finite number" in message(["exact_match"], [float("nan")])
