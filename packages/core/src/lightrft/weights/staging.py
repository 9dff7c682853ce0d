"""Whether all weights of a sync fit. Every bucket is read and compared before the first tensor of the engine changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from lightrft.errors import WeightSyncError
from lightrft.weights.buckets import WeightBucket


def stage(buckets: Iterable[WeightBucket], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of all incoming tensors, on the device of those in `expected` and under their names; nothing of `expected` is changed.

    `expected` are the engine's own tensors, a tied one once. Reads the buckets to their end. A buffer is cast to the dtype in which the
    engine holds it.

    Raises:
        WeightSyncError: a tensor is missing, unknown, or of another shape or dtype, named.
    """
    staged: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    misshapen: list[str] = []
    other_dtype: list[str] = []
    for bucket in buckets:
        for weight in bucket:
            name = next((n for n in weight.names if n in expected), None)
            if name is None:
                unknown.append(weight.names[0])
            elif expected[name].shape != weight.tensor.shape:
                misshapen.append(f"{name} (here {tuple(expected[name].shape)}, sent {tuple(weight.tensor.shape)})")
            elif expected[name].dtype != weight.tensor.dtype and not weight.is_buffer:
                other_dtype.append(f"{name} (here {expected[name].dtype}, sent {weight.tensor.dtype})")
            else:
                staged[name] = weight.tensor.detach().to(expected[name], copy=True)
    missing = sorted(set(expected) - set(staged) - {m.split(" ")[0] for m in misshapen + other_dtype})
    problems = [
        f"{what}: {', '.join(names[:3])} ({len(names)} in all)"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen), ("of another dtype", other_dtype))
        if names
    ]
    if problems:
        raise WeightSyncError(f"weights refused, the old ones stay: {'; '.join(problems)}")
    return staged
