"""The settings as flags of a plain argparse parser."""

from __future__ import annotations

import argparse
import json
from typing import Annotated, Any, Literal, get_args, get_origin

from lightrft.config.schema import PLUGINS, Config
from lightrft.config.sections import flags_of, installed_sections


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds every flag of LightRFT, with its default, and returns the parser.

    Flags of kind yes/no have the form `--flag` and `--no-flag`; `enable_engine_sleep` has the guide's pair instead.

    Example::

        >>> import argparse
        >>> import lightrft
        >>> parser = lightrft.add_arguments(argparse.ArgumentParser())
        >>> args = parser.parse_args(["--fsdp", "--engine_tp_size", "2"])
        >>> args.fsdp, args.engine_tp_size
        (True, 2)
    """
    return _add(parser, typed=True)


def override_parser(parser: argparse.ArgumentParser, *, only: str = "") -> argparse.ArgumentParser:
    """Adds the same flags without defaults and without types: what is given, as text, to be validated beside a recipe.

    `only` names one group of settings, such as `reward`; empty: all.
    """
    return _add(parser, typed=False, only=only)


def _add(parser: argparse.ArgumentParser, *, typed: bool, only: str = "") -> argparse.ArgumentParser:
    groups: dict[str, Any] = {}
    for name, info in Config.model_fields.items():
        extra = info.json_schema_extra
        assert isinstance(extra, dict)
        title = str(extra["group"])
        if title == PLUGINS or (only and title != only):
            continue
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group = groups[title]
        default = info.default if typed else argparse.SUPPRESS
        text = f"{info.description} (default: {info.default!r})".replace("%", "%%")
        if name == "enable_engine_sleep":
            group.add_argument("--enable_engine_sleep", action="store_true", default=default, help=text)
            group.add_argument(
                "--disable_engine_sleep", dest="enable_engine_sleep", action="store_false", default=default, help="the opposite"
            )
        elif info.annotation is bool:
            group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            group.add_argument(f"--{name}", default=default, help=text, **_value(info.annotation, typed))
    for flag, plugin, text in flags_of({} if only else installed_sections()):
        if plugin not in groups:
            groups[plugin] = parser.add_argument_group(f"plugin {plugin}")
        groups[plugin].add_argument(f"--{flag}", default=None if typed else argparse.SUPPRESS, help=text.replace("%", "%%"))
    return parser


def _value(annotation: Any, typed: bool) -> dict[str, Any]:
    if get_origin(annotation) is list:
        item = get_args(annotation)[0]
        plain = get_args(item)[0] if get_origin(item) is Annotated else item
        return {"nargs": "+", "type": plain if typed else str}
    if get_origin(annotation) is dict:
        return {"type": json.loads if typed else str, "metavar": "JSON"}
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if typed:
            return {"type": type(choices[0]), "choices": choices}
        # pydantic compares a Literal exactly: "2" is not 2, so text that is a number has to become one here.
        return {"type": _int_or_text if isinstance(choices[0], int) else str, "metavar": "|".join(map(str, choices))}
    return {"type": annotation} if typed else {}


def _int_or_text(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text
