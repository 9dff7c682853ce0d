"""What a phase says that ran out of the device's memory: its sizes, what the plan has for it, and the settings that make room."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from lightrft.config.schema import Config
from lightrft.diagnostics.memory_plan import GIB, cheapest, make_plan
from lightrft.distributed.device_use import who_holds
from lightrft.distributed.world import World
from lightrft.errors import DeviceMemoryError
from lightrft.trainer.plan_models import shapes_of

PLANNED = {
    "rollout": ("rollout",),
    "reward": ("reward pass",),
    "logprob": ("log-prob", "reference pass"),
    "update": ("update", "optimizer step"),
    "sync": ("sync",),
    "evaluate": ("rollout",),
}
"""The plan's phases within each of the trainer's."""

ROOM = 0.9
"""Of what the plan has, where that would have fitted: so much less is looked for."""


def telling(name: str, method: Callable[..., Any], *, config: Config, world: World) -> Callable[..., Any]:
    """`method` as phase `name`, whose lack of memory is a DeviceMemoryError in words; the error of torch is chained."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            asked = " ".join(str(error).split()).partition(". ")[0].rstrip(".") + "."
            where = f" {who_holds(world.device)}." if world.device.type == "cuda" else ""
            raise DeviceMemoryError(
                f"rank {world.rank} ran out of memory in phase {name!r}: {asked}{where} {planned(name, config=config, world=world)}"
            ) from error

    return call


def planned(name: str, *, config: Config, world: World) -> str:
    """The plan's figure for phase `name`, and what makes room; why there is none where the plan does not know the run."""
    if not config.model_name_or_path and config.scratch_tokenizer == "none":
        return "No plan of its memory can be made: the settings name no model"
    cuda = world.device.type == "cuda"
    device = torch.cuda.mem_get_info(world.device)[1] if cuda else 2**60
    try:
        models = shapes_of(config)
        plan = make_plan(config, models, world=world.world_size, device=device, cuda=cuda)
        phase = max((part for part in PLANNED.get(name, ()) if part in plan.phases), key=plan.total, default=plan.fullest)
        most = plan.total(phase)
        remedy = cheapest(config, models, world=world.world_size, device=min(device, int(ROOM * plan.total(plan.fullest))), cuda=cuda)
    except Exception as error:  # whatever a plan lacks, the phase and its sizes are told
        return f"No plan of its memory can be made: {' '.join(str(error).split())}"
    parts = ", ".join(f"{part} {size / GIB:.2f}" for part, size in sorted(plan.phases[phase].items(), key=lambda one: -one[1])[:4])
    told = f"The plan has {most / GIB:.2f} GiB for {phase!r} ({parts}), with every row as long as the settings allow."
    if remedy is None:
        return f"{told} No setting and no number of ranks that the plan knows makes it less: take a smaller model"
    flags = [f"--{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in remedy.settings.items()]
    ranks = [f"{remedy.world} ranks"] if remedy.world != world.world_size else []
    return f"{told} To make room: {' '.join([*flags, *ranks])} (then {remedy.plan.total(remedy.plan.fullest) / GIB:.2f} GiB at most)"
