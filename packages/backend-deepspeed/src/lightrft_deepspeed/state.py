"""The training state of a ZeRO engine, written so that any number of ranks, at any stage, reads it back with the same bits.

By fragments of parameters: each rank writes those that it holds, and reads of all files the elements that it needs. Not by DeepSpeed's own
files, which are read with pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lightrft.errors import CheckpointError
from lightrft_deepspeed.fragments import Fragment, frozen, held_once, masters, masters_to_parameters, trained

Optimizer = torch.optim.Optimizer

Part = dict[str, Any]
"""Of one parameter: `first`, the flat `values` from there on, and `moments`, in the same partition; the step count has no dimension."""


def save(folder: Path, engine: Any, optimizer: Optimizer) -> None:
    """Every rank writes its file; rank 0's also holds what is identical on all ranks."""
    mine, still = held_once(engine)
    content: dict[str, Any] = {
        "trained": {f.name: _part(f, optimizer.state.get(f.master, {})) for f in mine},
        "frozen": {f.name: _part(f, {}) for f in still},
    }
    if dist.get_rank() == 0:
        content["groups"] = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        content["buffers"] = {name: buffer.clone() for name, buffer in _buffers(engine).items()}
    torch.save(content, folder / f"rank-{dist.get_rank():05d}.pt")


@torch.no_grad()
def load(folder: Path, engine: Any, optimizer: Optimizer) -> None:
    """The reverse. Collective at stages 1 and 2, which give all ranks the whole parameters again.

    Raises:
        CheckpointError: other parameters were trained than are here.
    """
    files = [torch.load(path, mmap=True, weights_only=True, map_location="cpu") for path in sorted(folder.glob("rank-*.pt"))]
    saved, still = _by_name(files, "trained"), _by_name(files, "frozen")
    _check_trained(folder, engine, saved)
    fragments = trained(engine)
    for fragment in fragments:
        _fill(fragment.of(fragment.master), fragment.first, [(part["first"], part["values"]) for part in saved[fragment.name]])
    for fragment in frozen(engine):
        _fill(fragment.of(fragment.master), fragment.first, [(part["first"], part["values"]) for part in still[fragment.name]])
    for master in masters(engine):
        _restore_moments(optimizer, master, [f for f in fragments if f.master is master], saved)
    for name, buffer in _buffers(engine).items():
        buffer.copy_(files[0]["buffers"][name])
    for group, values in zip(optimizer.param_groups, files[0]["groups"], strict=True):
        group.update(values)
    masters_to_parameters(engine)


def _part(fragment: Fragment, state: dict[str, torch.Tensor]) -> Part:
    """Views: `torch.save` writes the memory behind several of them once."""
    moments = {key: fragment.of(value) if value.dim() else value for key, value in state.items()}
    return {"first": fragment.first, "values": fragment.of(fragment.master), "moments": moments}


def _by_name(files: list[dict[str, Any]], kind: str) -> dict[str, list[Part]]:
    parts: dict[str, list[Part]] = {}
    for file in files:
        for name, part in file[kind].items():
            parts.setdefault(name, []).append(part)
    return parts


def _check_trained(folder: Path, engine: Any, saved: dict[str, list[Part]]) -> None:
    here = {name for name, p in engine.module.named_parameters() if p.requires_grad}
    different = sorted(here ^ saved.keys())
    if different:
        was, now = ("frozen", "trained") if different[0] in here else ("trained", "frozen")
        raise CheckpointError(
            f"{str(folder)!r} was saved with {different[0]} {was}, here it is {now} ({len(different)} parameters differ); "
            "train the same parameters"
        )


def _fill(target: torch.Tensor, first: int, parts: list[tuple[int, torch.Tensor]]) -> None:
    """Copies the elements from `first` on out of the parts that hold them; reads no others from the disk."""
    filled = 0
    for start, values in parts:
        begin, end = max(first, start), min(first + target.numel(), start + values.numel())
        if begin < end:
            target[begin - first : end - first].copy_(values[begin - start : end - start])
            filled += end - begin
    assert filled == target.numel(), f"{filled} of {target.numel()} elements were saved"


def _restore_moments(optimizer: Optimizer, master: torch.Tensor, fragments: list[Fragment], saved: dict[str, list[Part]]) -> None:
    """In place where there are some: DeepSpeed holds views of them. A parameter that had none, beside others that had, gets zeros."""
    known = [part["moments"] for f in fragments for part in saved[f.name] if part["moments"]]
    if not known:
        optimizer.state.pop(master, None)
        return
    state = optimizer.state[master]
    for key, example in known[0].items():
        if not example.dim():  # the step count; the same for all parameters that ever had a gradient
            state[key] = torch.stack([moments[key] for moments in known]).amax()
            continue
        flat = state.setdefault(key, torch.zeros_like(master, requires_grad=False))
        for fragment in fragments:
            parts = [(part["first"], part["moments"][key]) for part in saved[fragment.name] if part["moments"]]
            if parts:
                _fill(fragment.of(flat), fragment.first, parts)
            else:
                fragment.of(flat).zero_()


def _buffers(engine: Any) -> dict[str, torch.Tensor]:
    kept = engine.module.state_dict().keys()
    return {name: buffer for name, buffer in engine.module.named_buffers() if name in kept}
