"""Every name that `lightrft` exports has a docstring with an example, and the example runs."""

from __future__ import annotations

import doctest
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import docstring_fraction
import lightrft
from lightrft.testing.tiny import tiny_model_folder

NAMES = [name for name in lightrft.__all__ if name != "__version__"]
EXAMPLE = re.compile(r"^Example::\n\n((?:(?:    .*)?\n?)+)", re.MULTILINE)


def example_of(name: str) -> str:
    found = EXAMPLE.search(inspect.getdoc(getattr(lightrft, name)) or "")
    assert found, f"lightrft.{name} has no `Example::` in its docstring"
    return textwrap.dedent(found[1])


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model_folder(tmp_path / "model", alphabet="0123456789 =+x", vocab_size=20)
    text = example_of(name)
    if ">>>" not in text:
        exec(compile(text, f"example of lightrft.{name}", "exec"), {"__name__": "example"})
        return
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    told: list[str] = []
    assert doctest.DocTestRunner(verbose=False).run(test, out=told.append).failed == 0, "".join(told)


def test_the_fraction_with_a_docstring_does_not_fall(capsys: pytest.CaptureFixture[str]) -> None:
    """Functions without one are methods whose contract is their base class's, and the commands, whose help is a constant."""
    docstring_fraction.main()
    print(capsys.readouterr().out)
    have = docstring_fraction.found()
    assert all(have[kind][0] == have[kind][1] for kind in ("modules", "classes", "names of lightrft with an example"))
    assert have["functions"][0] / have["functions"][1] > 0.89


def test_all_of_them_are_on_the_page_of_the_python_interface() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs/reference/api.md").read_text(encoding="utf-8")
    assert not [name for name in NAMES if not re.search(rf":: {name}$|lightrft\.{name}\b", page, re.MULTILINE)]
