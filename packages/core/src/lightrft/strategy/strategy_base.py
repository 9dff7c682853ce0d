"""The contract of a training backend. Public methods validate and guard, then call one hook; a backend overrides hooks only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch

from lightrft.config.schema import Config
from lightrft.distributed import collectives
from lightrft.distributed.memory import memory_report
from lightrft.distributed.mesh import Mesh
from lightrft.errors import CapabilityError, StrategyStateError
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability, StrategySpec
from lightrft.strategy import checkpoint, ema, hf_export
from lightrft.strategy.adapter_export import AdapterExport
from lightrft.strategy.compiled import compile_where_asked
from lightrft.strategy.hooks import AdamWSettings, Optimizer, Scheduler, StepResult, StrategyHooks
from lightrft.strategy.recompute import recompute_activations
from lightrft.strategy.resting import FrozenSide
from lightrft.strategy.rollout_facade import EngineSide
from lightrft.strategy.shard_export import export_sharded
from lightrft.strategy.sharding import sharded_modules
from lightrft.weights.buckets import WeightBucket, buffer_buckets, saved_buffers, tied_names
from lightrft.weights.lora_merge import ADAPTER, adapters_of, is_adapter, merged, plain_name
from lightrft.weights.safetensors_reader import WeightFiles

__all__ = ["AdamWSettings", "Optimizer", "Scheduler", "StepResult", "StrategyBase"]

T = TypeVar("T")


class StrategyBase(StrategyHooks, EngineSide, FrozenSide):
    """A training backend and, composed into it, the controller of a colocated inference engine.

    Built by `get_strategy`. Unless a method says otherwise it is *collective*: every rank calls it, in the same order.

    Contract of the update: `backward` takes this rank's *loss share*, already divided by the global denominator (such as the number
    of completion tokens over all ranks and micro-batches of the step). The gradient of a step is the plain sum of all loss shares, over
    micro-batches and ranks, so it does not depend on how the batch was split.
    """

    def __init__(self, config: Config, *, spec: StrategySpec, registry: Registry) -> None:
        self.config = config
        self.spec = spec
        self.registry = registry
        self.world = self._join_world()
        self.mesh = Mesh.of(self.world, sequence=config.sp_size)
        self.skipped_steps: dict[str, int] = {}
        self._offloaded: set[int] = set()
        self._unfinished: WeakSet[torch.nn.Module] = WeakSet()
        self._averages: WeakSet[torch.nn.Module] = WeakSet()
        self._resting = WeakKeyDictionary()

    # ---- ranks ---------------------------------------------------------------------------------------------------------------------------

    @property
    def is_rank_0(self) -> bool:
        """Whether this is the world's first rank. Not collective."""
        return self.world.rank == 0

    def print(self, *values: object) -> None:
        """Prints on rank 0 only. Not collective."""
        if self.is_rank_0:
            print(*values, flush=True)

    def all_reduce(self, data: Any, op: collectives.ReduceOp = "mean") -> Any:
        """Mean, sum, max or min over ranks of a tensor, number or nested dict; a new object. See `collectives.all_reduce`."""
        return collectives.all_reduce(data, op=op, group=self.world.group, device=self.world.device)

    def all_gather(self, data: Any) -> Any:
        """Rank-ordered concatenation of tensors (ragged first dimension allowed), list of numbers, or dict. See
        `collectives.all_gather`.
        """
        return collectives.all_gather(data, group=self.world.group, device=self.world.device)

    def report_memory(self, prefix: str = "") -> dict[str, float]:
        """Peak host memory and, on CUDA, present and peak device memory of this rank in GiB; printed on rank 0. Not collective."""
        report = memory_report(self.world.device)
        self.print(f"[memory] {prefix}: " + ", ".join(f"{name} {value:.2f}" for name, value in report.items()))
        return report

    # ---- models --------------------------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What the backend was told, as plain data, for the run folder. Not collective."""
        return {"strategy": self.spec.name, "world_size": self.world.world_size, **self._describe()}

    def prepare_model(
        self, model: torch.nn.Module, *, shard_size: int | None = None, weights: WeightFiles | None = None
    ) -> torch.nn.Module:
        """Makes a *frozen* model (initial model, reward model) ready for forward passes: on the device, eval mode, no gradients.

        `shard_size` N lets N neighbouring ranks share one copy; None is the backend's own choice. With `weights` the model's parameters
        are on the meta device and get their values from there: a backend that shards reads on each rank only what that rank keeps.
        With `offload_frozen` its parameters rest in host memory but for passes: see `on_device`.

        Raises:
            ValueError: N does not divide the world size.
            CapabilityError: N > 1 on a backend without the capability `sharded_frozen`, `offload_frozen` on one without `frozen_offload`.
        """
        if shard_size is not None and (shard_size < 1 or self.world.world_size % shard_size):
            raise ValueError(f"shard_size={shard_size} does not divide the world size {self.world.world_size}")
        if shard_size is not None and shard_size > 1:
            self._require(Capability.SHARDED_FROZEN, f"shard_size={shard_size}")
        if self.config.offload_frozen:
            self._require(Capability.FROZEN_OFFLOAD, "offload_frozen=True")
        if weights is not None:
            weights.fill_buffers(model)
        compile_where_asked(model, self.config, device_type=self.world.device.type)
        prepared = self._prepare_frozen(model.requires_grad_(False).eval(), shard_size, weights)
        if self.config.offload_frozen:
            self._rest(prepared, self.world.device)
        return prepared

    def prepare_trainable(
        self, model: torch.nn.Module, *, optimizer: AdamWSettings, weights: WeightFiles | None = None
    ) -> tuple[torch.nn.Module, Optimizer]:
        """Makes a model ready for training and its AdamW, over the parameters that require gradients.

        Every rank brings the same weights, or a model on the meta device and `weights` (see `prepare_model`). The model is put into eval
        mode, which changes no gradient but switches dropout off: the policy that is updated has to be the one that sampled, or the ratio
        of a first step is not 1. With `gradient_checkpointing` its blocks compute their activations again in the backward pass; with
        `compile` they are compiled.

        Raises:
            ValueError: no parameter requires gradients.
        """
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("no parameter of the model requires gradients; use prepare_model for a frozen model")
        if weights is not None:
            weights.fill_buffers(model)
            weights.take_values(model)
        compile_where_asked(model, self.config, device_type=self.world.device.type)
        if self.config.gradient_checkpointing:
            recompute_activations(model)
        return self._prepare_trainable(model.eval(), optimizer, weights)

    def prepare_ema_model(self, model: torch.nn.Module, *, weights: WeightFiles | None = None) -> torch.nn.Module:
        """Makes the model that will hold a moving average (`move_ema_model`): frozen, float32 also under `bf16`, sharded over all ranks.

        It has the actor's start as its values: the same files, or `weights` (see `prepare_model`). It is for saving, not for forward
        passes in the loop; `save_ema_model` and `save_model` take it.
        """
        if weights is not None:
            weights.fill_buffers(model)
        prepared = ema.prepare(model, world=self.world, weights=weights)
        self._averages.add(prepared)
        return prepared

    def unwrap(self, model: torch.nn.Module) -> Any:
        """The HF model inside what `prepare_*` returned: for its `config` and `generation_config`, not for forward passes. Not
        collective.
        """
        inner: Any = self._unwrap(model)
        return inner.get_base_model() if hasattr(inner, "peft_config") else inner

    # ---- the update ----------------------------------------------------------------------------------------------------------------------

    def accumulate(
        self, micro_batches: Sequence[T], loss_share: Callable[[T], torch.Tensor], model: torch.nn.Module, optimizer: Optimizer
    ) -> None:
        """The backward passes of one step: `share` gives this rank's loss share (see the class) for one of its micro-batches.

        Ranks may bring different numbers of micro-batches, or none: those that run out go on with passes that are worth exactly 0, for
        sharded models need every rank in every pass. `optimizer_step` comes next.

        Raises:
            ValueError: ranks bring different numbers, and the model is none of transformers' text models, which know a smallest input of
                theirs that goes through all of their parts.
        """
        most = max(1, self.all_reduce(len(micro_batches), "max"))
        mine = len(micro_batches)
        for index in range(most):
            self._begin_micro_batch(model, index == most - 1)
            # Without a name for the loss: one would keep its graph until the next loss is there, and memory would hold both.
            self.backward(
                loss_share(micro_batches[index]) if index < mine else self._worth_nothing(model), model, optimizer, final=index == most - 1
            )

    def backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, *, final: bool = True) -> None:
        """Adds the gradient of this rank's loss share (see the class). Every rank makes the same number of calls in a step.

        `final` False says that more micro-batches follow before the step: a backend may leave out communication until the final one.

        Raises:
            ValueError: `loss` is not a scalar.
        """
        if loss.dim() != 0:
            raise ValueError(f"loss has shape {tuple(loss.shape)}; backward takes a scalar, this rank's loss share")
        self._backward(loss, model, optimizer, final)
        if final:
            self._unfinished.discard(model)
        else:
            self._unfinished.add(model)

    def optimizer_step(
        self,
        optimizer: Optimizer,
        model: torch.nn.Module,
        scheduler: Scheduler | None,
        name: str = "model",
        *,
        max_norm: float | None = None,
    ) -> StepResult:
        """Clips the global norm over exactly this model's parameters, steps, clears the gradients, and steps the scheduler.

        `max_norm` None is the configuration's; 0 is off. A norm that is not finite skips the step (and the scheduler) on all ranks together
        and is counted in `skipped_steps[name]`.

        Raises:
            StrategyStateError: the optimizer's state is offloaded, or the last `backward` was not the final one.
        """
        if model in self._unfinished:
            raise StrategyStateError(
                f"optimizer_step({name!r}) after backward(final=False): the gradients may not be reduced; pass final=True on the last one"
            )
        if id(optimizer) in self._offloaded:
            raise StrategyStateError(f"optimizer_step({name!r}) while its optimizer is offloaded; call maybe_load_optimizer first")
        result = self._step(optimizer, model, self.config.max_norm if max_norm is None else max_norm)
        if result.skipped:
            self.skipped_steps[name] = self.skipped_steps.get(name, 0) + 1
            self.print(f"{name}: gradient norm {result.grad_norm}; step skipped on all ranks ({self.skipped_steps[name]} so far)")
        elif scheduler is not None:
            scheduler.step()
        return result

    def move_ema_model(self, ema_model: torch.nn.Module, model: torch.nn.Module, *, beta: float) -> None:
        """ema <- beta ema + (1 - beta) model, each weight in float32, adapters merged.

        The weights are those that leave (`export_weights`): with `use_mp_opt` the rounded ones.

        Raises:
            ValueError: `beta` is not in [0, 1), or the models differ in names or shapes, or `ema_model` is not held in float32.
        """
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta} of a moving average is not in [0, 1)")
        if problem := ema.problem(ema_model, shapes=self._exported_shapes(model)):
            raise ValueError(f"ema_model cannot follow the model: {problem}")
        ema.move(ema_model, self._unwrap(model), buckets=lambda: self.export_weights(model, dtype=torch.float32), beta=beta)

    def maybe_load_optimizer(self, optimizer: Optimizer) -> None:
        """Brings offloaded optimizer state back to the device. Idempotent; nothing to do where offloading is not asked for."""
        if id(optimizer) in self._offloaded:
            self._move_optimizer_state(optimizer, "device")
            self._offloaded.discard(id(optimizer))

    def maybe_offload_optimizer(self, optimizer: Optimizer) -> None:
        """Moves optimizer state to host memory where `fsdp_cpu_offload` asks for it (FSDP only). Idempotent."""
        if self.config.fsdp_cpu_offload and id(optimizer) not in self._offloaded:
            self._require(Capability.OPTIMIZER_OFFLOAD, "fsdp_cpu_offload")
            self._move_optimizer_state(optimizer, "cpu")
            self._offloaded.add(id(optimizer))

    # ---- what is saved -------------------------------------------------------------------------------------------------------------------

    def save_ckpt(
        self,
        folder: str | Path,
        *,
        model: torch.nn.Module,
        optimizer: Optimizer,
        scheduler: Scheduler | None = None,
        client_state: Mapping[str, Any] | None = None,
    ) -> Path:
        """Saves what training goes on from. Written under a temporary name, then renamed: an older one stays whole until then.

        `client_state` (rank 0's) holds numbers, strings, tensors and containers of them.

        Raises:
            CheckpointError: the folder cannot be written (PeerError on the other ranks; what was there stays).
        """
        return checkpoint.save(
            self, Path(folder), model=model, optimizer=optimizer, scheduler=scheduler, client_state=dict(client_state or {})
        )

    def load_ckpt(
        self, folder: str | Path, *, model: torch.nn.Module, optimizer: Optimizer, scheduler: Scheduler | None = None
    ) -> dict[str, Any]:
        """Restores what `save_ckpt` saved and returns its `client_state`.

        Raises:
            CheckpointError: no checkpoint there, an incomplete one, or one of another model (the first names that differ); PeerError on the
                other ranks, where only some found it.
        """
        return checkpoint.load(self, Path(folder), model=model, optimizer=optimizer, scheduler=scheduler)

    def save_ema_model(self, folder: str | Path, ema_model: torch.nn.Module) -> Path:
        """Saves a moving average as `save_ckpt` does a trained model: each rank writes what it holds. For a HF folder, `save_model`.

        Raises:
            CheckpointError: as `save_ckpt`.
        """
        return checkpoint.save(self, Path(folder), model=ema_model, optimizer=None, scheduler=None, client_state={})

    def load_ema_model(self, folder: str | Path, ema_model: torch.nn.Module) -> None:
        """Restores what `save_ema_model` saved, on any number of ranks. Raises CheckpointError as `load_ckpt`."""
        checkpoint.load(self, Path(folder), model=ema_model, optimizer=None, scheduler=None)

    def save_model(self, model: torch.nn.Module, folder: str | Path, *, tokenizer: Any = None, source: str | Path | None = None) -> Path:
        """Writes a HF folder (config, safetensors, tokenizer) on rank 0, under a temporary name first; adapters are merged.

        `source` is what the model was loaded from (default: what its configuration says): the files beside its weights come along, and
        with `save_dtype` `source` the dtypes on disk.

        Raises:
            CheckpointError: it cannot be written (PeerError on the other ranks; what was there stays).
        """
        return hf_export.save_hf_folder(
            Path(folder),
            hf_model=self.unwrap(model),
            buckets=self.export_weights(model),
            tokenizer=tokenizer,
            world=self.world,
            source=source,
            dtype=self.config.save_dtype,
        )

    def save_adapter(self, model: torch.nn.Module, folder: str | Path) -> Path:
        """Writes the adapters of a model that peft wrapped, as the folder that `PeftModel.from_pretrained` reads.

        Raises:
            ValueError: the model has none.
        """
        adapted: Any = self._unwrap(model)
        if not adapters_of(adapted):
            raise ValueError("save_adapter: the model has no adapters; use save_model")
        buckets = self._export_weights(model, None, self.config.weight_bucket_mb * 2**20)
        return hf_export.save_adapter_folder(Path(folder), config=adapted.peft_config[ADAPTER], buckets=buckets, world=self.world)

    def export_weights(self, model: torch.nn.Module, *, dtype: torch.dtype | None = None) -> Iterator[WeightBucket]:
        """The state dict that transformers would save, full, as buckets of at most `weight_bucket_mb`: parameters, cast to `dtype` (None:
        their own), then the saved buffers, as they are (`Weight.is_buffer`).

        Adapters leave merged into their matrices, as a model without them; weights are cast before they are gathered, but not those of a
        model with adapters, which are merged in between. The iterator is collective: every rank reads it to the end.
        """
        max_bytes = self.config.weight_bucket_mb * 2**20
        with self.on_device(model):
            yield from self._export_parameters(model, dtype, max_bytes)
        yield from buffer_buckets(self._unwrap(model), max_bytes=max_bytes, rename=plain_name)

    def _export_parameters(self, model: torch.nn.Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        if model in self._averages and any(sharded_modules(model)):
            return export_sharded(model, dtype=dtype, max_bytes=max_bytes)
        adapters = adapters_of(self._unwrap(model))
        if not adapters:
            return self._export_weights(model, dtype, max_bytes)
        return merged(self._export_weights(model, None, max_bytes), adapters, dtype=dtype, max_bytes=max_bytes)

    def shutdown(self) -> None:
        """Ends the engine and then the process group. Idempotent."""
        self.shutdown_inference_engine()
        self._leave_world()

    # ---- guards and parts ---------------------------------------------------------------------------------------------------------------

    def _require(self, capability: Capability, asked: str) -> None:
        if capability not in self.spec.capabilities:
            having = ", ".join(self.registry.having("strategy", capability)) or "no installed one"
            raise CapabilityError(
                f"{asked} needs the capability {str(capability)!r}, which strategy {self.spec.name!r} does not declare; "
                f"one that does: {having}"
            )

    def _adapter_export(self, model: torch.nn.Module) -> AdapterExport:
        return AdapterExport(self, model)

    def _worth_nothing(self, model: torch.nn.Module) -> torch.Tensor:
        """A forward pass of the smallest input, and a loss of 0 that reaches every parameter it went through."""
        inner = self.unwrap(model)
        inputs = getattr(inner, "dummy_inputs", None)
        modalities = getattr(inner, "input_modalities", "text")
        if inputs is None or modalities not in ("text", ("text",)):
            lacking = (
                "has no `dummy_inputs` (a transformers model has)" if inputs is None else f"reads {', '.join(modalities)}, not text alone"
            )
            raise ValueError(
                f"rank {self.world.rank} has fewer micro-batches than another, and {type(inner).__name__} {lacking}: nothing to fill them "
                "up with that goes through all of its parts; bring the same number on every rank"
            )
        outputs = model(**{name: tensor.to(self.world.device) for name, tensor in inputs.items()})
        differentiable = [t for t in outputs.values() if isinstance(t, torch.Tensor) and t.requires_grad]
        return sum((t.float().sum() for t in differentiable), start=torch.zeros((), device=self.world.device)) * 0.0

    def _exported_shapes(self, model: torch.nn.Module) -> dict[tuple[str, ...], tuple[int, ...]]:
        """All names, and the full shape, of each weight of `export_weights`."""
        inner = self._unwrap(model)
        names = tied_names(inner)
        shapes = {tuple(map(plain_name, names[name])): tuple(shape) for name, shape in self._shapes(model).items() if not is_adapter(name)}
        return shapes | {(plain_name(name),): tuple(buffer.shape) for name, buffer in saved_buffers(inner).items()}
