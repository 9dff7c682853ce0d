"""How is the training state of a ZeRO engine written and read back with the same bits? Each rank its own partition.

Not by DeepSpeed's own files, which are read with pickle. A partition fits only the number of ranks and the stage that it was cut for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lightrft.errors import CheckpointError

Optimizer = torch.optim.Optimizer

LAYOUT = "layout.json"


def save(folder: Path, engine: Any, optimizer: Optimizer, *, rank: int, world_size: int) -> None:
    """Every rank writes its file; at stage 0, where all hold the same, rank 0 alone."""
    stage = engine.zero_optimization_stage()
    if rank == 0:
        (folder / LAYOUT).write_text(json.dumps({"zero_stage": stage, "world_size": world_size}), encoding="utf-8")
    if rank != _owner(stage, rank):
        return
    masters = _masters(engine)
    content = {
        "masters": [master.detach().clone() for master in masters],  # a view would be saved with all that it is a view of
        "moments": [dict(optimizer.state.get(master, {})) for master in masters],
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
        "rest": {name: tensor.clone() for name, tensor in _rest(engine).items()},
    }
    torch.save(content, _file(folder, rank))


def load(folder: Path, engine: Any, optimizer: Optimizer, *, rank: int, world_size: int) -> None:
    """The reverse. Collective at stages 1 and 2, which give all ranks the whole parameters again.

    Raises:
        CheckpointError: it was written at another stage, or on another number of ranks at a stage that partitions.
    """
    stage = engine.zero_optimization_stage()
    _check_layout(folder, stage, world_size)
    saved = torch.load(_file(folder, _owner(stage, rank)), weights_only=True, map_location="cpu")
    masters = _masters(engine)
    with torch.no_grad():
        for master, value, moments in zip(masters, saved["masters"], saved["moments"], strict=True):
            master.copy_(value)
            _restore_moments(optimizer, master, moments)
        for name, tensor in _rest(engine).items():
            tensor.copy_(saved["rest"][name])
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(values)
    _masters_to_parameters(engine, len(masters))


def _check_layout(folder: Path, stage: int, world_size: int) -> None:
    layout = json.loads((folder / LAYOUT).read_text(encoding="utf-8"))
    if layout["zero_stage"] != stage:
        raise CheckpointError(
            f"{str(folder)!r} was saved with zero_stage={layout['zero_stage']}, this run has zero_stage={stage}; use that one"
        )
    if stage and layout["world_size"] != world_size:
        raise CheckpointError(
            f"{str(folder)!r} was saved on {layout['world_size']} ranks with zero_stage={stage}, this run has {world_size}; start as many"
        )


def _masters(engine: Any) -> list[torch.Tensor]:
    """What AdamW steps on: the float32 partitions of this rank, at stage 0 the trained parameters themselves."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return [p for p in engine.module.parameters() if p.requires_grad]
    zero = engine.optimizer
    return list(zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups)


def _masters_to_parameters(engine: Any, num_masters: int) -> None:
    """Gives the model's parameters the values of the masters, as a step does at its end."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        for index in range(num_masters):
            engine.optimizer._reassign_or_swap_out_partitioned_parameters(index)
    elif stage:
        engine.optimizer.update_lp_params()


def _restore_moments(optimizer: Optimizer, master: torch.Tensor, saved: dict[str, torch.Tensor]) -> None:
    """In place where there are some: DeepSpeed holds views of them."""
    state = optimizer.state[master]
    for name, value in saved.items():
        if name in state:
            state[name].copy_(value)
        else:
            state[name] = value.to(master.device) if value.dim() else value  # AdamW keeps its step count on the host
    if not saved:
        del optimizer.state[master]


def _rest(engine: Any) -> dict[str, torch.Tensor]:
    """Parameters that are not trained (this rank's partition at stage 3), and the buffers that the model saves."""
    frozen = {name: getattr(p, "ds_tensor", p).detach() for name, p in engine.module.named_parameters() if not p.requires_grad}
    kept = engine.module.state_dict().keys()
    return frozen | {name: buffer for name, buffer in engine.module.named_buffers() if name in kept}


def _owner(stage: int, rank: int) -> int:
    return rank if stage else 0


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.pt"
