"""docs/troubleshooting.md: a section for each warning that the code gives, and errors in the words that they have."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from lightrft import errors
from lightrft.cli import show
from lightrft.config.load import make_config
from lightrft.distributed.failure import describe
from lightrft.observe.warning_names import WarningName, printed
from lightrft.plugins.registry import Registry
from lightrft.testing.tiny import tiny_model_folder
from lightrft.trainer.preflight import preflight_problems

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
NAMES = get_args(WarningName)
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("packages/*/src/**/*.py"))}


def texts(tree: ast.AST) -> list[str]:
    """The texts in a module; what an f-string fills in is an ellipsis."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
    return found


TEXTS = [text for path, tree in SOURCES.items() if path.name != "warning_names.py" for text in texts(tree)]


def test_each_warning_has_a_section_and_each_section_a_warning() -> None:
    """That no other name is given is for mypy: `Finding` and `Warnings.say` take a `WarningName`."""
    warnings = PAGE.split("\n## Errors\n")[0]
    assert sorted(re.findall(r"^### (.*)$", warnings, re.MULTILINE)) == sorted(NAMES)


def test_each_name_is_given_somewhere() -> None:
    assert not [name for name in NAMES if name not in TEXTS]


def test_errors_are_quoted_as_they_are() -> None:
    quotes = re.findall(r"^> (.*)$", PAGE, re.MULTILINE)
    assert len(quotes) > 20
    lost = [quote for quote in quotes if not any(stands_in(quote, text) for text in TEXTS)]
    assert not lost


def test_a_changed_word_is_noticed() -> None:
    assert stands_in("is damaged: …", "'x' is damaged: …") and not stands_in("was damaged: …", "'x' is damaged: …")


def test_settings_that_the_page_names_exist() -> None:
    known = set((ROOT / "docs/reference/settings.md").read_text(encoding="utf-8").split("`"))
    named = {name for name in re.findall(r"--([a-z0-9_]+)(?![a-z0-9-])", PAGE) if name != "bundle"}
    assert named and named <= known


def test_a_printed_warning_ends_with_its_section() -> None:
    assert printed("no_gradient", "nothing is learned") == "WARNING: nothing is learned (docs: troubleshooting#no_gradient)"
    assert printed("of_my_own", "look at this") == "WARNING: look at this"


def test_each_kind_of_error_has_a_section() -> None:
    kinds = {error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, errors.LightRFTError)}
    headings = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^### (.*)$", PAGE, re.MULTILINE)}
    assert len(kinds) > 20 and not {error.__name__: error.section for error in kinds if error.section not in headings}


def test_what_is_printed_of_an_error_ends_with_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    damaged = ValueError("from without")
    damaged.__cause__ = errors.CheckpointError("'x' is damaged: y")
    assert describe(damaged, rank=0).text().endswith(" (docs: troubleshooting#a-resume-is-refused)")
    assert describe(ZeroDivisionError(), rank=0).text().endswith(" (docs: troubleshooting#a-rank-fails)")
    show.error(errors.ConfigError(["a", "b"]))
    assert capsys.readouterr().err == "error: a\nerror: b (docs: troubleshooting#settings-flags-and-files)\n"
    one = [errors.Problem(line, section=errors.CheckpointError.section) for line in ("a", "b")]
    show.error(errors.ConfigError(one))
    assert capsys.readouterr().err == "error: a\nerror: b (docs: troubleshooting#a-resume-is-refused)\n"
    show.error(errors.ConfigError([*one, "c"]))
    assert capsys.readouterr().err.endswith("error: c (docs: troubleshooting#settings-flags-and-files)\n")


def stands_in(quote: str, text: str) -> bool:
    """Quotes may leave out what an f-string says further on within a gap."""
    return re.search(".*?".join(map(re.escape, quote.split("…"))), text, re.DOTALL) is not None


def test_what_is_found_before_ranks_start_keeps_the_section_of_its_error(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    tiny_model_folder(tmp_path / "model")
    settings = {"model_name_or_path": str(tmp_path / "model"), "prompt_data": str(rows), "output_dir": str(tmp_path / "run")}
    assert section_of(settings | {"model_name_or_path": str(rows)}) == "a-model-cannot-be-read"
    assert section_of(settings | {"output_dir": "/"}) == "a-folder-of-a-run"
    assert section_of(settings | {"resume_from": "latest"}) == "a-resume-is-refused"
    rows.write_text("{")
    assert section_of(settings) == "a-row-cannot-be-read"
    assert section_of(settings | {"resume_from": "latest"}) == "settings-flags-and-files", "of two kinds"


def section_of(settings: dict[str, object]) -> str:
    """Of the error with which a training of these settings would be refused."""
    sizes = {"rollout_batch_size": 1, "n_samples_per_prompt": 2, "train_batch_size": 2, "micro_train_batch_size": 2}
    config = make_config(settings | sizes | {"strategy": "single", "engine_type": "hf", "reward": ["exact_match"]})
    found = preflight_problems(config, mode="train", registry=Registry.discover(), world_size=1)
    assert found
    return errors.ConfigError(found).section
