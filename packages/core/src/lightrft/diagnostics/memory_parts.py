"""What each training backend holds of a model on one rank, in bytes: from the number of its parameters and the settings."""

from __future__ import annotations

from dataclasses import dataclass

from lightrft.config.checks import strategy_name
from lightrft.config.schema import Config

FLOAT = 4
REDUCE_BUCKET = 50_000_000
"""Elements of the buffer in which DeepSpeed sums gradients over ranks (`lightrft_deepspeed.settings.REDUCE_BUCKET`)."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes of one trained model on one rank."""

    weights: int
    optimizer: int
    """State of AdamW, with float32 masters where the weights are others."""
    gradients: int
    """While micro-batches are added up; 0: one micro-batch, whose gradients come as activations go (see `each`)."""
    step_gradients: int
    """When the optimizer steps."""
    scratch: int
    """That the optimizer's step holds on the device while it runs."""
    gathered: int
    """Whole parameters in the dtype of the pass, beside `weights`."""
    each: float
    """Bytes that stay of one element's gradient in a pass that does not add up."""
    offloaded: bool
    """Whether `optimizer` is on the device in the update only."""
    copies: float
    """Of a bucket of the sync, until the engine has it."""
    reduce: int = 0
    """Where gradients are summed over ranks, in the backward pass."""
    always: int = 0
    """What the backend keeps in every phase beside all these."""
    keeps_gradients: bool = False
    """Whether `gradients` are there in every phase."""
    on_host: int = 0
    """In host memory, for training: what the settings keep off the device."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of parameters: all, trained ones, of the largest block, outside blocks, and of the largest trained tensor."""

    total: int
    trained: int
    block: int
    rest: int
    largest: int


def pass_bytes(config: Config) -> int:
    """Bytes of an element in a pass."""
    return 2 if config.bf16 else FLOAT


def held(config: Config, sizes: Sizes, *, world: int, micro_batches: int, cuda: bool) -> Held:
    """Of the settings' backend, on one of `world` ranks that adds up so many micro-batches for an update. `cuda`: the optimizer takes all
    tensors together, and not one after the other.
    """
    return HOLDS[strategy_name(config)](config, sizes, world, micro_batches > 1, cuda)


def frozen_bytes(config: Config, parameters: int, *, world: int, shard: int = 0) -> int:
    """Of a model without gradients on one rank; `shard` ranks hold one copy (0: the world does)."""
    return pass_bytes(config) * parameters // (1 if strategy_name(config) == "single" else shard or world)


def _single(config: Config, sizes: Sizes, _world: int, adds_up: bool, cuda: bool) -> Held:
    trained = FLOAT * sizes.trained
    return Held(
        weights=FLOAT * sizes.total,
        optimizer=2 * trained,
        gradients=trained if adds_up else 0,
        step_gradients=trained,
        scratch=trained if cuda else 2 * FLOAT * sizes.largest,
        gathered=2 * sizes.total if config.bf16 else 0,  # what autocast keeps of the weights in a pass
        each=FLOAT,
        offloaded=False,
        copies=_copies(config),
    )


def _fsdp(config: Config, sizes: Sizes, world: int, adds_up: bool, _cuda: bool) -> Held:
    trained = FLOAT * sizes.trained
    moments, masters = 2 * trained // world, trained // world
    size = pass_bytes(config)
    return Held(
        weights=(2 if config.use_mp_opt else FLOAT) * sizes.total // world,
        optimizer=moments + (masters if config.use_mp_opt else 0),
        gradients=trained if adds_up else 0,  # whole ones, until the last micro-batch sums them over ranks
        step_gradients=trained // world,
        scratch=trained // world,
        gathered=size * (sizes.rest + 2 * sizes.block if config.fsdp_reshard_after_forward else sizes.total),
        each=FLOAT / world,
        offloaded=config.fsdp_cpu_offload,
        copies=3 + 1 / world,  # the shards, what all ranks have sent, the whole tensors, the bucket
        on_host=moments + (masters if config.use_mp_opt else 0) if config.fsdp_cpu_offload else 0,
    )


def _copies(config: Config) -> float:
    """The bucket, and weights with which adapters are merged."""
    return 2 if config.lora_rank else 1


def _deepspeed(config: Config, sizes: Sizes, world: int, adds_up: bool, cuda: bool) -> Held:
    stage, trained, size = config.zero_stage, FLOAT * sizes.trained, pass_bytes(config)
    part = world if stage >= 1 else 1
    on_host = config.adam_offload
    has_masters = config.bf16 or stage >= 1
    kept = 0 if on_host else trained // (world if stage >= 2 else 1)
    whole = stage < 3
    bucket = REDUCE_BUCKET * (size if stage == 2 else FLOAT)
    flat = FLOAT * (sizes.largest if stage == 0 else sizes.trained // part)  # what the optimizer takes at a time, off CUDA
    return Held(
        weights=size * sizes.total // (1 if whole else world),
        optimizer=0 if on_host else (3 if has_masters else 2) * trained // part,
        gradients=kept if adds_up or not whole else 0,
        step_gradients=min(kept, trained // part),
        scratch=0 if on_host else trained // part if cuda else 2 * flat,
        gathered=0 if whole else size * (sizes.rest + 2 * sizes.block),
        each=0.0 if on_host or not whole else FLOAT / (world if stage >= 2 else 1),
        copies=_copies(config) if whole else 3,
        reduce=bucket if stage in (1, 2) else 0,
        always=0 if whole else bucket,
        keeps_gradients=not whole,
        offloaded=False,
        on_host=(4 if has_masters else 3) * trained // part if on_host else 0,  # the moments, masters, and the gradients that they step on
    )


HOLDS = {"single": _single, "fsdp": _fsdp, "deepspeed": _deepspeed}
"""What each strategy that is known does; a plan is made for these alone."""
