"""YAML text as plain values; whatever its reader cannot make of it is one kind of error, with the line."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Says at which line a value stands that looks like a number or a date and is none: PyYAML raises plain ValueErrors and such."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            value = f"{node.value!r:.60}" if isinstance(node, yaml.ScalarNode) else "a value"
            text = f"{value} cannot be read as {node.tag.rpartition(':')[2]} ({type(error).__name__}: {error!s:.80}); put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from error


def load_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        yaml.YAMLError: malformed, or a value that cannot be read; or nested too deeply.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply to be read") from None
