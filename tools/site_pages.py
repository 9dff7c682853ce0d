"""Writes docs/reference/settings.md, the table of all settings, from `lightrft.config.schema` and the capabilities that they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightrft.config.checks import NEEDS
from lightrft.config.schema import PLUGINS, Config
from lightrft.config.value_types import LARGEST_COUNT
from lightrft.trainer.resume_settings import BELONG_TO_STATE, OF_NO_CONSEQUENCE, UNLESS

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/settings.md"
HEAD = """# Settings

Each is a key of a recipe (YAML) and a flag of `lightrft train` (`--name value`; of yes and no, `--name` and `--no-name`). Flags win over
the recipe. A combination that cannot work is refused before a process starts, with the remedy. What a setting needs is declared by the
strategy or the engine; `lightrft plugins` lists what is installed. Counts of samples are over all ranks unless the text says "per rank".
This page is generated from the code (`make docs`).
"""

WORDS = {
    "integer": "whole number", "number": "number", "boolean": "yes or no", "string": "text", "object": "mapping", "null": "nothing"
}  # fmt: skip
"""For the types of a JSON schema."""


def page() -> str:
    """The whole page: a table for each group, in the order of the code."""
    schema = Config.model_json_schema()
    needs = {need.field: f" (needs `{need.capability.value}` of the {need.kind})" for need in NEEDS}
    groups: dict[str, list[str]] = {}
    for name, field in Config.model_fields.items():
        extra: Any = field.json_schema_extra
        if extra["group"] == PLUGINS:
            continue
        default = field.get_default(call_default_factory=True)
        kind = type_of(schema["properties"][name])
        row = f"| `{name}` | {kind} | `{json.dumps(default)}` | {cell(field.description or '')}{needs.get(name, '')} | {on_resume(name)} |"
        groups.setdefault(extra["group"], []).append(row)
    parts = [HEAD]
    for group, rows in groups.items():
        head = ["| setting | type | default | what it does | another value on resume |", "|---|---|---|---|---|"]
        parts.append("\n".join([f"\n## {group.capitalize()}\n", *head, *rows]) + "\n")
    return "".join(parts)


def on_resume(name: str) -> str:
    """What another value means to a run that goes on from a checkpoint."""
    if name in BELONG_TO_STATE:
        return "refused"
    if name in OF_NO_CONSEQUENCE:
        return "of no matter"
    return f"holds, is told; refused with `{UNLESS[name]}`" if name in UNLESS else "holds, is told"


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema in words: `whole number of at least 1`."""
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(type_of(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {schema[key]:g}" for key, word in bounds.items() if key in schema and schema[key] < LARGEST_COUNT]
    return " ".join([WORDS.get(schema.get("type", ""), "anything"), " and ".join(limits)]).strip()


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
