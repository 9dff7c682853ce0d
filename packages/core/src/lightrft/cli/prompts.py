"""`lightrft show-prompts`: from its words to what the first prompts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightrft.cli.flags import parse
from lightrft.cli.settings import checked, merge
from lightrft.plugins.registry import Registry

OPEN, CLOSE = "\u27e6", "\u27e7"
"""Around what is one added token: the same characters in the words of the data have none."""


def run_show_prompts(words: Sequence[str], *, description: str) -> tuple[dict[str, Any], bool]:
    """The report, and whether it is wanted as JSON.

    Raises:
        ConfigError: all problems of the flags, the recipe and the data.
    """
    rest, num_rows, problems = _rows(list(words))
    flags = parse(rest, command="show-prompts", description=description, nproc_help="has no effect: no rank is started")
    if flags.nproc is not None:
        problems.append("--nproc-per-node has no effect: show-prompts starts no rank; leave it out")
    config = checked(merge(flags, mode="prompts"), problems=[*flags.problems, *problems], mode="prompts", world_size=1)
    from lightrft.trainer.show_prompts import show_prompts  # the tokenizer's library is slow to import

    return show_prompts(config, num_rows=num_rows, registry=Registry.discover()), flags.as_json


def _rows(words: list[str]) -> tuple[list[str], int, list[str]]:
    """The words without `--rows N`, N (3 where it is not given), and what is wrong with it."""
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name != "--rows":
            continue
        if not equals:
            value = words[at + 1] if at + 1 < len(words) else ""
        rest = words[:at] + words[at + (1 if equals else 2) :]
        if value.isdigit() and int(value) >= 1:
            return rest, int(value), []
        return rest, 3, [f"--rows {value!r}: give a whole number of rows, at least 1"]
    return words, 3, []


def print_report(report: Mapping[str, Any]) -> None:
    """For a person: what holds for all prompts, then row by row."""
    size = f"tokenizer {report['tokenizer_tokens']} tokens, embedding {report['embedding_rows'] or 'unknown'} rows"
    left = f", {report['num_too_long']} left out as too long" if report["num_too_long"] else ""
    print(f"{report['file']}: {report['num_prompts']} prompts{left}; {size}")
    print("stop tokens: " + ("; ".join(f"{t['id']} {t['text']!r} ({', '.join(t['sources'])})" for t in report["stop_tokens"]) or "none"))
    if report["stop"]:
        print("stop strings: " + ", ".join(map(repr, report["stop"])))
    if unused := report["generation_config_not_used"]:
        print("generation_config.json, not used: " + ", ".join(f"{name} {value!r}" for name, value in unused.items()))
    for note in report["notes"]:
        print(f"note: {note}")
    for sentence in report["warnings"]:
        print(f"WARNING: {sentence}")
    for row in report["rows"]:
        _print_row(row)
    print(f"\n{OPEN} {CLOSE} stand around what is one added token; mask 1 is trained.")
    print("The completion is an example: the label, and the stop token.")


def _print_row(row: Mapping[str, Any]) -> None:
    end = row["num_tokens"]
    print(f"\n--- row {row['index']}: {end} prompt tokens")
    print(marked(row["tokens"][:end], row["special"][:end]))
    if row["tokens"][end:]:
        print(f"--- then, for example, {len(row['tokens']) - end} tokens of a completion")
        print(marked(row["tokens"][end:], row["special"][end:]))
    print(f"ids   {' '.join(map(str, row['token_ids']))}")
    print(f"mask  {''.join(map(str, row['mask']))}")
    seen = row["reward_input"]
    print(f"rewards {', '.join(row['rewards'])} see:")
    for name in ("prompt", "completion", "raw_completion", "answer", "row"):
        print(f"  {name:<15}{seen[name]!r:.300}")
    if len(seen["answers"]) > 1:
        print(f"  {'answers':<15}{seen['answers']!r:.300}")


def marked(tokens: Sequence[str], special: Sequence[bool]) -> str:
    """The tokens' text, added ones in brackets."""
    return "".join(f"{OPEN}{text}{CLOSE}" if one else text for text, one in zip(tokens, special, strict=True))
