"""Loads and starts DeepSpeed: quietly, on the device that torch sees, and without compiling anything at the first use."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from typing import Any

import torch

from lightrft.distributed.world import World

# Read by DeepSpeed while it is imported: without it, every rank prints a warning about the accelerator that it guessed.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.runtime.engine import DeepSpeedEngine

__all__ = ["DeepSpeedEngine", "deepspeed", "forget_groups", "make_ready", "start_engine"]


def start_engine(model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, settings: dict[str, Any], world: World) -> torch.nn.Module:
    """Wraps a model and its optimizer. Collective; the process group is up."""
    make_ready(world)
    engine: torch.nn.Module
    with contextlib.redirect_stdout(io.StringIO()):  # its bf16 optimizer prints what memory is in use, and has no setting for it
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    engine.eval()  # a new engine is in training mode; its eval() does not return it
    return engine


def make_ready(world: World) -> None:
    """What DeepSpeed needs of the process before its first call. Idempotent, not collective."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # its notes go to the standard output of every rank
    # Else every rank warns at its first steps; until DeepSpeed calls torch 2.13's `all_gather_single` and `reduce_scatter_single`.
    warnings.filterwarnings(
        "ignore", message=r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated", category=FutureWarning
    )
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed insists on it, also for one process without torchrun
    if world.device.type == "cpu":
        # Else the first engine compiles a shared-memory all-reduce for minutes; killed meanwhile, it leaves a lock that stops later runs.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_init_required=False)  # takes over torch's group; `zero.Init` asks for it before any engine


def forget_groups() -> None:
    """Ends the process group together with what DeepSpeed keeps of it, so that a later strategy of this process can join again.

    Nothing to do before the first engine.
    """
    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
