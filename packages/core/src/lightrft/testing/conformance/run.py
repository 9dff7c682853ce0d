"""Runs the kit on plugins by name, outside of any project: pytest over a file made for it, and a verdict for each test."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from lightrft.testing.conformance.requirement import MARK

State = Literal["passed", "failed", "blocked", "refused", "not asked"]


@dataclass(frozen=True)
class Verdict:
    """Of one test (`name` with its parameters in brackets) of one class.

    `refused`: what is not declared is refused, as it has to be. `blocked`: it could fail for the reason of a plainer one that failed.
    `message` is the reason where it failed, or was not asked. `method` of the contract has the requirement `text`.
    """

    kit: str
    name: str
    state: State
    message: str
    seconds: float
    method: str
    text: str

    @property
    def test(self) -> str:
        """The name without parameters."""
        return self.name.split("[")[0]


class _Reporter:
    """A plugin of pytest that keeps what came of each test."""

    def __init__(self, leave_out: Sequence[str]) -> None:
        self.leave_out = frozenset(leave_out)
        self.verdicts: list[Verdict] = []
        self.problems: list[str] = []
        self._requirements: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # by whole names: --deselect takes what it is given for the beginning of one
        items[:] = [item for item in items if "::".join(item.nodeid.split("[")[0].split("::")[1:]) not in self.leave_out]
        for item in items:
            function = getattr(item, "function", None)
            method, _ = getattr(function, MARK, ("", None))
            self._requirements[item.nodeid] = (method, (function.__doc__ or "").strip().split("\n")[0] if function else "")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.problems.append(_message(report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not (report.failed or report.skipped):
            return
        known = dict(report.user_properties)
        state: State = "passed"
        if report.failed:
            state = "failed"
        elif report.skipped:
            state = "blocked" if "blocked" in known else "not asked"
        elif "refused" in known:
            state = "refused"
        _, kit, name = report.nodeid.rsplit("::", 2)
        seconds = known.get("seconds", report.duration)
        method, text = self._requirements.get(report.nodeid, ("", ""))
        message = "" if report.passed else _message(report)
        self.verdicts.append(Verdict(kit, name, state, message, float(str(seconds)), method, text))


def run_kit(source: str, *, leave_out: Sequence[str] = ()) -> tuple[list[Verdict], list[str]]:
    """Runs the test classes of a module's text; returns their verdicts and what could not even be collected.

    No conftest, no configuration and no plugin of pytest that happens to be installed has a part in it. `leave_out` names tests as
    `Class::test`.
    """
    reporter = _Reporter(leave_out)
    with tempfile.TemporaryDirectory(prefix="lightrft-kit-") as name:
        folder = Path(name).resolve()
        file = folder / f"test_kit_{time.monotonic_ns()}.py"
        file.write_text(source, encoding="utf-8")
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        fixed = ["-c", str(folder / "pytest.ini"), "--rootdir", str(folder), "--noconftest", "--import-mode=importlib"]
        fixed += ["-p", "no:cacheprovider", "-q", "--basetemp", str(folder / "tmp"), "--strict-markers"]
        with _without_plugins(), contextlib.redirect_stdout(io.StringIO()):
            pytest.main([*fixed, str(file)], plugins=[reporter])
    return reporter.verdicts, reporter.problems


@contextlib.contextmanager
def _without_plugins() -> Any:
    before = {name: os.environ.get(name) for name in ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.pop("PYTEST_ADDOPTS", None)
    os.environ.pop("PYTEST_PLUGINS", None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _message(report: Any) -> str:
    """What the check said, without pytest's frames; of an error, its text."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message) if crash is not None else str(report.longrepr)
    return text.removeprefix("AssertionError: ").removeprefix("Failed: ")
