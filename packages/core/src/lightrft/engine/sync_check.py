"""Do the weights that the actor will send fit the engine, before the first byte moves?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightrft.errors import WeightSyncError

SHOWN = 3


def check_fit(sent: Mapping[tuple[str, ...], Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    """`sent`: all names of each tensor and its full shape. `expected`: name and shape of what the engine's model folder holds; empty where
    that is not known, and then nothing can be compared. A tied tensor has several names, of which the folder may hold one.

    Raises:
        WeightSyncError: missing, unknown, or of another shape; the first names of each.
    """
    if not expected:
        return
    known = {name for names in sent for name in names}
    missing = [name for name in expected if name not in known]
    unknown, misshapen = [], []
    for names, shape in sent.items():
        held = next((expected[name] for name in names if name in expected), None)
        if held is None:
            unknown.append(names[0])
        elif tuple(held) != tuple(shape):
            misshapen.append(f"{names[0]} (actor {tuple(shape)}, engine {tuple(held)})")
    found = (("missing in the actor", missing), ("unknown to the engine", unknown), ("of another shape", misshapen))
    problems = [f"{what}: {', '.join(names[:SHOWN])} ({len(names)} in all)" for what, names in found if names]
    if problems:
        raise WeightSyncError(f"the actor's weights do not fit the engine's model, nothing was sent: {'; '.join(problems)}")
