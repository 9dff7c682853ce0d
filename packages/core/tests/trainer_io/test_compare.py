"""Runs beside each other: the right numbers, the settings that differ, and a page that is whole and safe."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from lightrft.errors import RunFolderError
from lightrft.run.compare import compare, compare_page


def make_run(folder: Path, rewards: list[float], **settings: object) -> Path:
    folder.mkdir(parents=True)
    config = {"seed": 0, "learning_rate": 1e-6, "output_dir": str(folder)} | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [{"step": n, "rollout/reward": value, "rollout/length_mean": 10.0 + n} for n, value in enumerate(rewards, start=1)]
    rows += [{"step": len(rewards), "eval/reward": 0.5}] if rewards else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "slow", [0.1, 0.3, 0.2]),
        make_run(tmp_path / "fast <b>", [0.1, 0.9], learning_rate=1e-4, reward=["math"]),
        make_run(tmp_path / "empty", []),
    ]


def test_results_and_settings(runs: list[Path]) -> None:
    found = compare(runs)
    assert found.names == ["slow", "fast <b>", "empty"]
    slow, fast, empty = found.results
    assert (slow["rollouts"], slow["reward, last"], slow["reward, best"], slow["tokens, last"], slow["warnings"]) == (3, 0.2, 0.3, 13.0, 0)
    assert (fast["reward, last"], fast["evaluation, last"], fast["seconds"]) == (0.9, 0.5, None)
    assert (empty["rollouts"], empty["reward, last"], empty["reward, best"]) == (0, None, None)
    assert found.differing == {"learning_rate": [1e-6, 1e-4, 1e-6], "reward": [None, ["math"], None]}, "not output_dir"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page(runs: list[Path]) -> None:
    text = compare_page(compare(runs))
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and tags.fetched == [] and "fast <b>" not in text and "fast &lt;b&gt;" in text
    assert text.count("<h3>Reward: rollout/reward</h3>") == 1
    chart = text.split("<h3>Reward: rollout/reward</h3>")[1].split("</div>")[0]
    assert chart.count("<polyline") == 2 and 'class="line0"' in chart and 'class="line1"' in chart, (
        "a line for each run, none for the empty one"
    )
    assert "0.9 at rollout 2" in chart and "Loss" not in text, "what nobody logged has no chart"


def test_runs_of_the_same_name_are_told_by_their_places(tmp_path: Path) -> None:
    found = compare([make_run(tmp_path / "a" / "run", [0.1]), make_run(tmp_path / "b" / "run", [0.1])])
    assert found.names == ["a/run", "b/run"] and found.differing == {}
    assert "<p class='none'>none</p>" in compare_page(found)


def test_bad_input(runs: list[Path], tmp_path: Path) -> None:
    for folders, words in (
        ([runs[0], tmp_path], "holds no run: it has no config.yaml; give the output_dir"),
        ([runs[0], tmp_path / "none"], "holds no run: it is no folder"),
        ([runs[0]], "1 runs to compare; give 2 to 8 run folders"),
        ([runs[0]] * 9, "9 runs to compare; give 2 to 8 run folders"),
        ([runs[0], runs[1], runs[0]], "slow' is named twice; name each run once"),
    ):
        with pytest.raises(RunFolderError, match=words):
            compare(folders)


def test_the_command(runs: list[Path], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lightrft.cli.main", "compare"]
    done = subprocess.run([*words, *map(str, runs), "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["runs"] == ["slow", "fast <b>", "empty"] and said["results"]["slow"]["reward, best"] == 0.3
    assert said["differing"]["learning_rate"] == [1e-6, 1e-4, 1e-6] and (tmp_path / said["page"]).is_file() and "['math']" in done.stdout
    wrong = subprocess.run([*words, str(runs[0]), "none"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (
        wrong.returncode == 2 and wrong.stderr.startswith("error: 'none' holds no run: it is no folder") and wrong.stderr.count("\n") == 1
    )
