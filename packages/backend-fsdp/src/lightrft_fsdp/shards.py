"""Makes a sharded tensor of a local shard, and the reverse."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard; of a plain tensor, itself. They share memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_as(parameter: torch.Tensor, shard: torch.Tensor) -> DTensor:
    """`shard`, of any dtype, as part of a tensor that is sharded over the ranks as `parameter` is. They share memory."""
    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        shard, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
