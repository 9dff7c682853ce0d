"""The evaluation sets that `eval_data` names. Each word is a path, or NAME=PATH; without a name, the file's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lightrft.errors import ConfigError


def eval_files(words: Sequence[str]) -> dict[str, str]:
    """Paths by name, in order. Raises ConfigError: a name twice."""
    found: dict[str, str] = {}
    for word in words:
        match = re.fullmatch(r"([\w.-]+)=(.+)", word)
        name, path = (match[1], match[2]) if match and not Path(word).exists() else (Path(word).stem, word)
        if name in found:
            raise ConfigError([f"eval_data names {name!r} twice ({found[name]!r}, {path!r}); give one of them as NAME=PATH"])
        found[name] = path
    return found
