"""Builds and ends vLLM inside a trainer's process without taking anything from it. Environment, random state, threads, groups."""

from __future__ import annotations

import functools
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
import torch.distributed as dist

from lightrft.errors import CapabilityError, EngineStateError

IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""The engine's core runs in this process: its external launcher asks for that."""

DEFAULTS = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
CPU_DEFAULTS = {
    "TORCHDYNAMO_DISABLE": "1",  # else the first log-probs wait some 20 s for a compiler, for nothing
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer has a say in the cores too
}


def set_environment(device_type: str) -> None:
    """Before vLLM is imported. What the user has set stays, but for what the engine cannot do without."""
    for name, value in (DEFAULTS | (CPU_DEFAULTS if device_type == "cpu" else {})).items():
        os.environ.setdefault(name, value)
    os.environ.update(IN_PROCESS)


LAUNCHER = ("LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")


BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
OLDEST_DETERMINISTIC = (9, 0)
"""CUDA's compute capability (Hopper) from which vLLM has batch-invariant kernels."""


def make_deterministic(device: torch.device) -> None:
    """Before vLLM is imported: it replaces torch's own matrix products, softmax and means in this process, so the trainer's, too.

    Raises:
        CapabilityError: not on CUDA, or a GPU before Hopper.
        EngineStateError: vLLM was imported before, when some of its modules had decided otherwise.
    """
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < OLDEST_DETERMINISTIC:
        here = f"compute capability {found[0]}.{found[1]}" if found else device.type
        raise CapabilityError(f"deterministic_rollout: vLLM needs a GPU of compute capability 9.0 or more, found {here}; leave it out")
    if "vllm" in sys.modules and os.environ.get(BATCH_INVARIANT) != "1":
        raise EngineStateError(f"deterministic_rollout: vLLM was imported without it before; set {BATCH_INVARIANT}=1 for the whole process")
    os.environ[BATCH_INVARIANT] = "1"


@contextmanager
def as_it_was() -> Iterator[None]:
    """Puts back what building an engine changes in the whole process: variables, seeds, and torch.set_num_threads.

    vLLM 0.32 sets LOCAL_WORLD_SIZE to the size of the group, seeds every generator, and on the CPU replaces `torch.set_num_threads`.
    """
    variables = dict(os.environ)
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    if not dist.is_initialized():
        # One rank alone: vLLM starts a group of its own, and would look for its store at the launcher, which has none for it.
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    cuda_state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        for name in {"LOCAL_WORLD_SIZE", "VLLM_DIST_IDENT"} - set(variables):
            os.environ.pop(name, None)
        for name in LAUNCHER:
            if name in variables:
                os.environ[name] = variables[name]
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state)


Snapshot = dict[type, tuple[tuple[type, ...], dict[str, Any]]]


def snapshot(model: torch.nn.Module) -> Snapshot:
    """Bases and attributes of the classes of a transformers model."""
    classes = {type(module) for module in model.modules()} - {cls for cls in vars(torch.nn).values() if isinstance(cls, type)}
    return {cls: (cls.__bases__, dict(vars(cls))) for cls in classes}


def give_classes_back(model: torch.nn.Module, before: Snapshot) -> None:
    """After an engine was built whose `model` has classes of transformers inside (families that vLLM has no code for): vLLM 0.32 rewrites
    these for its compiler, and the trainer's models are of the same classes. The engine's modules keep what was rewritten, as a class of
    their own.
    """
    twins: dict[type, type] = {}
    for cls, (bases, attributes) in before.items():
        now = dict(vars(cls))
        changed = {name: value for name, value in now.items() if value is not attributes.get(name) and name not in ("__doc__", "__dict__")}
        if cls.__bases__ == bases and not changed:
            continue
        added = tuple(base for base in cls.__bases__ if base not in bases)
        cls.__bases__ = bases
        for name in changed:
            if name in attributes:
                setattr(cls, name, attributes[name])
            else:
                delattr(cls, name)
        twins[cls] = type(cls.__name__, (cls, *added), changed)
    for module in model.modules():
        if type(module) in twins:
            module.__class__ = twins[type(module)]


@contextmanager
def no_shared_memory(device_type: str) -> Iterator[None]:
    """While an engine is built on a CPU with AVX512: its ranks talk through gloo and not through segments in /dev/shm.

    vLLM 0.32 names these after the ranks alone: two jobs of one machine open the same ones, and those that a killed job left behind make
    the next one fail with "errno: 17". Besides, the ranks spin while they wait, and four of them on two cores stand still.
    """
    if device_type != "cpu":
        yield
        return
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    private = "_all_group_ranks_share_shm_group_name"  # there is no public switch in 0.32
    asked = getattr(CpuCommunicator, private)
    setattr(CpuCommunicator, private, lambda self: False)
    try:
        yield
    finally:
        setattr(CpuCommunicator, private, asked)


@contextmanager
def no_bars(device_type: str) -> Iterator[None]:
    """While an engine is built on a GPU: its captures draw no progress bars into the run's log. There is no setting for these in 0.32."""
    if device_type != "cuda":
        yield
        return
    from vllm.v1.worker.gpu import cudagraph_utils

    drawn = cudagraph_utils.tqdm
    cudagraph_utils.tqdm = lambda items, **_options: items
    try:
        yield
    finally:
        cudagraph_utils.tqdm = drawn


def keep_linear_layers_plain(device_type: str) -> None:
    """Before an engine is built on a CPU, for the whole process, as syncs build its layers again: their weights stay tensors that can be
    read and verified. vLLM 0.32 hands them to oneDNN, which packs them and drops the originals, of a tied output layer a second copy.
    """
    if device_type == "cpu":
        from vllm import _custom_ops

        _custom_ops._supports_onednn = False  # there is no public switch in 0.32


def rotate_heads_in_torch(device_type: str) -> None:
    """Before an engine is built on a CPU, for the whole process: vLLM 0.32's kernel there takes [tokens, heads x size] alone. Of what
    latent attention gives it, [tokens, heads, size], it rotates heads by other tokens' positions, and keys not at all.
    """
    if device_type != "cpu":
        return
    from vllm.model_executor.layers.rotary_embedding import base

    kind: Any = base.RotaryEmbedding
    kernel = kind.forward_cpu
    if hasattr(kernel, "_lightrft_heads"):
        return

    @functools.wraps(kernel)
    def forward_cpu(self: Any, positions: Any, query: Any, key: Any = None) -> Any:
        by_heads = query.dim() == positions.dim() + 2
        return self.forward_native(positions, query, key) if by_heads else kernel(self, positions, query, key)

    forward_cpu._lightrft_heads = True  # type: ignore[attr-defined]
    kind.forward_cpu = forward_cpu


@contextmanager
def default_group_kept(keep: bool) -> Iterator[None]:
    """While an engine ends: vLLM 0.32 destroys the process's default group with its own, and that one is the trainer's."""
    destroy: Any = dist.destroy_process_group

    def destroy_others(group: Any = None) -> None:
        if group is not None:
            destroy(group)

    if keep:
        dist.destroy_process_group = destroy_others
    try:
        yield
    finally:
        dist.destroy_process_group = destroy


def end_groups(*, keep_default: bool) -> None:
    """After an engine that was not built: vLLM's process groups end, so that another can be built in this process."""
    from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

    with default_group_kept(keep_default):
        destroy_model_parallel()
        destroy_distributed_environment()
