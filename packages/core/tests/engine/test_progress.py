"""Rank 0's terminal says how far generation is, below the table and only while it runs; nobody else sees or pays for it."""

import io
from dataclasses import replace

import pytest
import torch
from rich.live import Live

from lightrft.distributed.mesh import Axis
from lightrft.distributed.world import World
from lightrft.engine import progress
from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.engine.progress import line, progress_line, unwatched
from lightrft.plugins.specs import EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.testing.fake_engine import FakeEngine
from lightrft.testing.tiny import tiny_model_folder
from lightrft.types import Request, SamplingParams

SETUP = EngineSetup(
    model_path="", dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=32, max_batch_size=2, mem_util=0.85,
    trust_remote_code=False, rank=0, group_size=1, group=None,
)  # fmt: skip
SAMPLING = SamplingParams(n=3, max_new_tokens=6)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From within a test: pytest puts its own stdout back after the fixtures."""
    made = Terminal()
    monkeypatch.setattr("sys.stdout", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress, "REFRESH_S", 0.0)
    return made


def generate(rank: int = 0, cls: type[FakeEngine] = FakeEngine) -> RolloutController:
    unit = RolloutController(
        lambda: cls(SETUP), spec=EngineSpec(name="fake", target="a:b"), group=Axis(ranks=(rank,), rank=0, group=None),
        world=World(rank=rank, world_size=1, local_rank=0, device=torch.device("cpu"), group=None), dtype=torch.float32, sleep_level=None,
        seed=3, tokenize=lambda text: [1],
    )  # fmt: skip
    unit.gather_and_generate(
        SAMPLING, prompt_token_ids=[[3], [4, 5]], prompts=None, images=None, images_num=None, sleep_engine=False, logprobs=False
    )
    return unit


def test_the_line_in_words() -> None:
    assert line(tokens=12345, completions=7, num_completions=1024, seconds=2.0) == (
        "generating: 7 of 1,024 completions, 12,345 tokens, 6,172 tok/s"
    )
    assert line(tokens=0, completions=7, num_completions=8, seconds=2.0) == "generating: 7 of 8 completions"


def test_a_terminal_shows_it_and_clears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    unit = generate()
    text = terminal.getvalue()
    assert "generating: 3 of 6 completions" in text and "generating: 6 of 6 completions" in text
    assert text.rindex("\x1b[2K") > text.rindex("generating"), "the line is wiped at the end"
    assert unit.engine is not None and unit.engine.report is unwatched


def test_silent_off_a_terminal_and_on_other_ranks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    generate()
    assert capsys.readouterr() == ("", "")
    other = Terminal()
    monkeypatch.setattr("sys.stdout", other)
    generate(rank=1)
    assert other.getvalue() == ""


def test_it_lives_below_a_table_that_is_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with Live("the table", auto_refresh=False) as table:
        table.refresh()
        with progress_line(8) as report:
            report(completions=1)
            together = terminal.getvalue()
        table.update("the table, later", refresh=True)
    assert together.rindex("generating: 1 of 8") > together.rindex("the table")
    after = terminal.getvalue()[len(together) :]
    assert "the table, later" in after and "generating" not in after


class FailingEngine(FakeEngine):
    def generate(self, requests, sampling):  # type: ignore[no-untyped-def]  # as in the base class
        self.report(tokens=1)
        raise ZeroDivisionError("in the engine")


def test_an_engine_that_fails_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        generate(cls=FailingEngine)
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l"), "the cursor is back"


def test_what_hf_reports_adds_up_to_what_it_returns(tmp_path) -> None:  # type: ignore[no-untyped-def]
    engine = HFEngine(replace(SETUP, model_path=str(tiny_model_folder(tmp_path / "model"))))
    told: list[tuple[int, int]] = []

    def report(*, tokens: int = 0, completions: int = 0) -> None:
        told.append((tokens, completions))

    engine.report = report
    requests = [Request(id=i, prompt_token_ids=ids, seed=i) for i, ids in enumerate([[3], [4, 5], [6, 7, 8]])]
    drawn = [c for o in engine.generate(requests, replace(SAMPLING, stop_token_ids=(5, 6, 7, 8, 9))) for c in o.completions]
    assert sum(tokens for tokens, _ in told) == sum(len(c.token_ids) for c in drawn)
    assert sum(ended for _, ended in told) == len(drawn) == 9
    assert len(told) > 2 and len({len(c.token_ids) for c in drawn}) > 1, "as it goes, and of several lengths"
