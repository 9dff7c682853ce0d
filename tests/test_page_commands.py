"""What the pages show exists: subcommands, make targets, scripts, flags. *Get started* is run whole, in `test_site.py`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from lightrft.cli.main import EVAL_SHORT, app
from lightrft.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent
OTHERS = {"coming-from.md", "coming-from-table.md"}
"""Pages about flags of other libraries."""
NOT_OURS = {"rdzv_id", "requeue", "name"}
"""Of torchrun and of sbatch, and the word that stands for any flag."""
READMES = [ROOT / "README.md", *ROOT.glob("packages/*/README.md"), *ROOT.glob("examples/**/README.md")]
PAGES = sorted(path for path in [*ROOT.glob("docs/**/*.md"), *READMES] if path.name not in OTHERS)
CODE = re.compile(r"^```(?:bash|text)?\n(.*?)^```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"\n\n((?:    .*\n)+)")
FLAG = re.compile(r"(?<![\w-])--([a-zA-Z][\w.-]*)")


def test_every_page_is_looked_at() -> None:
    assert len(PAGES) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_it_shows_exists(page: Path) -> None:
    wrong = [f"{code.strip()[:80]}: {problem}" for code in codes(page) for problem in problems(code)]
    assert not wrong


def test_what_is_not_there_is_found() -> None:
    assert list(problems("lightrft tran --config x")) == ["no command tran"]
    assert list(problems("lightrft train --packing_sample")) == ["no flag --packing_sample"]
    assert list(problems("make parities ARGS=--json")) == ["no target parities"]
    assert list(problems("python benchmarks/pace.py --json")) == ["no file benchmarks/pace.py"]
    assert not list(problems("lightrft train --no-fsdp --acme.strength 2  # --nothing of ours"))


def codes(page: Path) -> list[str]:
    """Blocks between fences, indented ones, and what stands in backticks in a line."""
    text = page.read_text(encoding="utf-8")
    return [block or inline for block, inline in CODE.findall(text)] + INDENTED.findall(CODE.sub("", text))


def problems(code: str) -> list[str]:
    """What the commands of a block, or of a piece in a line, name that there is not."""
    found = []
    code = re.sub(r"\s#.*", "", code.replace("\\\n", " "))
    for line in code.splitlines():
        found += [
            f"no command {name}"
            for name in re.findall(r"^\s*\$?\s*(?:\.venv/bin/)?lightrft ([a-z][a-z-]+)\b", line)
            if name not in COMMANDS
        ]
        found += [f"no target {name}" for name in re.findall(r"^\s*\$?\s*make ([a-z][\w-]*)", line) if name not in TARGETS]
        found += [
            f"no file {name}" for name in re.findall(r"\b((?:benchmarks|examples|tools)/[\w/.-]+\.\w+)", line) if not (ROOT / name).exists()
        ]
        if re.match(r"\s*(\$ )?(?:\.venv/bin/)?(lightrft |torchrun |python benchmarks/|make |--[a-z])", line):
            found += [f"no flag --{name}" for name in FLAG.findall(line) if not is_flag(name)]
    return found


def is_flag(name: str) -> bool:
    plain = name.replace("-", "_").removeprefix("no_")
    return plain in FLAGS or plain in NOT_OURS or "." in name


def flags_of_commands() -> set[str]:
    group = typer.main.get_command(app)
    return {option.lstrip("-") for command in group.commands.values() for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]


def flags_of_scripts() -> set[str]:
    scripts = [
        *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob("tools/*.py"),
        *ROOT.glob("examples/*.py"),
        *ROOT.glob("packages/core/src/lightrft/**/*.py"),
    ]
    return {flag for path in scripts for flag in re.findall(r'"--([a-zA-Z][\w-]*)', path.read_text(encoding="utf-8"))}


COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
FLAGS = {name.replace("-", "_") for name in {*Config.model_fields, *EVAL_SHORT, *flags_of_commands(), *flags_of_scripts()}}
