"""The page of a run is whole, safe and readable, in a real browser, whatever state the run is in."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from lightrft.cli.report import write_report
from lightrft.errors import RunFolderError
from lightrft.run.report_page import page
from lightrft.run.run_data import read_run
from lightrft.run.run_folder import open_run_folder
from lightrft.run.svg import chart, histogram
from lightrft.testing.small_trainer import make_trainer

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), "")


class Balanced(HTMLParser):
    """Whether every tag that opens is closed, and what would be fetched from elsewhere."""

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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with warnings, samples and distributions; one completion is hostile."""
    folder = tmp_path_factory.mktemp("report")
    trainer = make_trainer(folder, plot_every=1, eval_every=1, save_every=1, kl_coef=0.1, engine_type="hf", max_steps=5, num_episodes=9)
    open_run_folder(trainer.config, backend={})
    trainer.warnings.step = 2
    trainer.warnings.say("constant_reward", "reward is 0.0 for all <completions>")
    trainer.fit()
    line = {"step": 5, "prompt": "<script>alert(1)</script>", "completion": "</pre><img src=http://x>", "answer": None, "reward": 1.0}
    with (folder / "run" / "samples.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n" + '{"step": 5, "prom')  # and a line that a kill cut off
    return folder / "run"


def test_the_page_is_whole_and_fetches_nothing(run: Path) -> None:
    text = page(read_run(run))
    parser = Balanced()
    parser.feed(text)
    assert parser.open == [] and parser.fetched == []
    assert "<script" not in text and "<img" not in text and "http" not in re.sub(r"&lt;.*?&gt;", "", text).replace("http://x&gt;", "")
    for words in (
        "finished",
        "reward is 0.0 for all &lt;completions&gt;",
        "rollout/reward",
        "eval/reward",
        "Rollout 5: lengths",
        "checkpoints: step-",
    ):
        assert words in text, words
    assert text.count("<svg") >= 8


def test_the_command_says_where_the_page_is(run: Path, tmp_path: Path) -> None:
    result = write_report(str(run), out=str(tmp_path / "deep" / "page.html"))
    assert result == {
        "report": str(tmp_path / "deep" / "page.html"),
        "tokens": str(tmp_path / "deep" / "page-tokens.html"),
        "run": str(run),
        "state": "finished",
        "steps": 5,
        "warnings": result["warnings"],
        "unreadable": [],
    }
    assert result["warnings"] >= 1
    assert (tmp_path / "deep" / "page.html").stat().st_size > 10_000
    assert write_report(str(run), out=None)["report"] == str(run / "report.html")


def test_a_run_that_has_only_begun_or_crashed_has_a_page_too(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "no step was logged yet" in page(read_run(tmp_path)) and "running, or ended without a summary" in page(read_run(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rollout/reward": null}\n{"step": 2, "rollout/reward": 0.5}\n{"step": 3, "rol')
    assert read_run(tmp_path).series("rollout/reward") == [(2.0, 0.5)] and read_run(tmp_path).unreadable == []
    assert "<svg" in page(read_run(tmp_path))


def test_files_that_cannot_be_read_are_told_not_taken_for_empty(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1, "rollout/reward": 0.5}\n\x00\xff broken\n{"step": 2\n{"step": 3, "rollout/reward": 0.7}\n'
    )
    (tmp_path / "summary.json").write_text("{")
    (tmp_path / "environment.json").write_text("[1]")
    (tmp_path / "samples.jsonl").mkdir()  # unreadable for anyone, root included
    found = read_run(tmp_path)
    assert found.series("rollout/reward") == [(1.0, 0.5), (3.0, 0.7)] and found.samples == [] and found.summary == {}
    assert sorted(found.unreadable) == [
        "environment.json holds no JSON object and was left out",
        "metrics.jsonl: 2 of 4 lines are no JSON and were left out, the first is line 2",
        "samples.jsonl cannot be read and was left out: Is a directory",
        "summary.json holds no JSON object and was left out",
    ]
    assert all(line in page(found) for line in found.unreadable)
    assert write_report(str(tmp_path), out=None)["unreadable"] == found.unreadable


@pytest.mark.parametrize(
    "gone", ["metrics.jsonl", "summary.json", "environment.json", "samples.jsonl", "distributions.jsonl", "warnings.jsonl"]
)
def test_a_run_without_one_of_its_files_has_a_page(run: Path, tmp_path: Path, gone: str) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(gone, "model", "checkpoints"))
    found = read_run(tmp_path / "run")
    parser = Balanced()
    parser.feed(page(found))
    assert parser.open == [] and found.unreadable == []


def test_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(save_every=2, num_episodes=9, plot_every=1, keep_checkpoints=0)
    trainer = make_trainer(tmp_path, **settings, max_steps=3)
    open_run_folder(trainer.config, backend={})
    trainer.fit()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-3", ignore_errors=True)
    resumed = make_trainer(tmp_path, **settings, max_steps=5, resume_from="latest")  # goes back to step 2
    resumed.fit()
    found = read_run(tmp_path / "run")
    assert [step for step, _ in found.series("rollout/reward")] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in found.distributions] == [1, 2, 3, 4, 5]
    assert found.state == "finished" and "step-4" in page(found)


def test_a_folder_that_holds_no_run_is_one_line(tmp_path: Path) -> None:
    for folder, words in ((tmp_path, "has no config.yaml"), (tmp_path / "none", "is no folder")):
        with pytest.raises(RunFolderError, match=words) as caught:
            write_report(str(folder), out=None)
        assert "\n" not in str(caught.value)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_run(tmp_path)


def test_charts_by_hand() -> None:
    two = chart([("reward", [(0, 0.0), (10, 1.0)])])
    # the plot is 168 high, from 12 to 180; 0 and 1 lie 0.06 of 1.12 from its edges: 168 * 0.06 / 1.12 = 9
    assert '<polyline class="line0" points="52.0,171.0 448.0,21.0"/>' in two and "reward 1 at rollout 10" in two
    assert chart([("x", [])]) == chart([("x", [(1, float("nan"))])]) == '<p class="none">not logged</p>'
    bars = histogram([[1, 3], [2, 1]])
    assert bars.count('class="bar"') == 2 and "3: 1 to" in bars
    assert histogram([[0.5, 4]]).count('class="bar"') == 1


@pytest.mark.skipif(not BROWSER, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)])
def test_a_browser_shows_it_by_day_and_by_night(run: Path, tmp_path: Path, scheme: int, dark: bool) -> None:
    html, picture = tmp_path / "report.html", tmp_path / "report.png"
    html.write_text(page(read_run(run)), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1240,2400"]
    command.append(f"--blink-settings=preferredColorScheme={scheme}")
    subprocess.run([*command, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", html.as_uri()], timeout=120, check=True,
                   capture_output=True)  # fmt: skip
    pixels = imread(picture)[..., :3]
    assert (pixels.mean() < 0.25) if dark else (pixels.mean() > 0.85), "the ground is dark by night only"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 60_000, "a blank page is a few kB"
