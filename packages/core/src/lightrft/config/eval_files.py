"""The evaluation sets that `eval_data` names. Each word is a path or a hub name, or NAME=PATH; without a name, the file's own."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.config.data_sources import named_sources


def eval_files(words: Sequence[str]) -> dict[str, str]:
    """Paths by name, in order. Raises ConfigError: a name twice."""
    return named_sources("eval_data", words)
