"""The rewards that count for a sample: all of them, or those that a column of its data row names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lightrft.config.column_names import value_at
from lightrft.errors import nearest


def routed(row: Mapping[str, Any], *, reward_key: str, names: Sequence[str]) -> Collection[str]:
    """The names of the rewards that count: what the column `reward_key` holds, one name or a list; all without the column or a value.

    Raises:
        ValueError: a name that no reward has (nearest), an empty list, or no name at all.
    """
    value = value_at(row, reward_key) if reward_key else None
    if value is None:
        return names
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{reward_key}={value!r:.60} names no reward; expected a name or a list of names ({', '.join(names)})")
    for name in found:
        if name not in names:
            raise ValueError(f"{reward_key}={value!r:.60}: there is no reward {name!r}{nearest(name, names)} (rewards: {', '.join(names)})")
    return found
