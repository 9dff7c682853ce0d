"""Are rewards that the data name, and that are not there, told before a model loads?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.load import make_config
from lightrft.errors import ConfigError
from lightrft.testing.fake_strategy import fake_registry
from lightrft.trainer.routes import check_routes
from lightrft.trainer.run import evaluate, train


def settings(folder: Path, *kinds: Any, **changes: Any) -> dict[str, Any]:
    rows = [{"prompt": str(n), "answer": "1", "kind": kind} for n, kind in enumerate(kinds)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "reward": ["exact_match", "judge=http://127.0.0.1:9/score"], "reward_key": "kind", "prompt_data": str(folder / "rows.jsonl"),
        "strategy": "fake", "engine_type": "fake", "output_dir": str(folder / "run"), "model_name_or_path": str(folder / "no_model"),
    }  # fmt: skip
    return values | changes


def test_names_and_lists_of_them_and_no_value_are_fine(tmp_path: Path) -> None:
    check_routes(make_config(settings(tmp_path, "judge", ["exact_match", "judge"], None)))
    check_routes(make_config(settings(tmp_path, "anything", reward_key="")))


def test_every_bad_row_is_told_with_its_place(tmp_path: Path) -> None:
    values = settings(tmp_path, "judge", "exact_mach", [], 7, eval_data=[str(tmp_path / "rows.jsonl")])
    with pytest.raises(ConfigError) as caught:
        check_routes(make_config(values))
    path = tmp_path / "rows.jsonl"
    assert caught.value.problems[:3] == [
        f"{path}:2: kind='exact_mach': there is no reward 'exact_mach'; did you mean 'exact_match'? (rewards: exact_match, judge)",
        f"{path}:3: kind=[] names no reward; expected a name or a list of names (exact_match, judge)",
        f"{path}:4: kind=7 names no reward; expected a name or a list of names (exact_match, judge)",
    ]
    assert len(caught.value.problems) == 6, "the evaluation's rows too"
    with pytest.raises(ConfigError) as caught:
        check_routes(make_config(settings(tmp_path, *["nobody"] * 30)))
    assert len(caught.value.problems) == 21 and caught.value.problems[-1] == "10 more rows are wrong"


def test_a_column_that_no_row_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reward_key='kinds': no row has such a column; did you mean 'kind'"):
        check_routes(make_config(settings(tmp_path, None, reward_key="kinds")))


@pytest.mark.parametrize("command", [train, evaluate])
def test_it_is_told_before_a_model_loads(tmp_path: Path, command: Any) -> None:
    config = make_config(settings(tmp_path, "exact_mach"))
    with pytest.raises(ConfigError, match="there is no reward 'exact_mach'"):
        command(config, registry=fake_registry())
    assert not (tmp_path / "run").exists()
