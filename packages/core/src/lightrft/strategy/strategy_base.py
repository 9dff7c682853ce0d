"""What does a training backend promise? Public methods validate and guard, then call one hook; a backend overrides hooks only."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar
from weakref import WeakSet

import torch

from lightrft.config.load import as_config
from lightrft.config.schema import Config
from lightrft.distributed import collectives
from lightrft.distributed.buckets import WeightBucket, tied_names
from lightrft.distributed.memory import memory_report
from lightrft.distributed.world import World
from lightrft.engine.base import InferenceEngine
from lightrft.engine.controller import RolloutController
from lightrft.engine.setup import make_controller
from lightrft.errors import CapabilityError, StrategyStateError
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability, StrategySpec
from lightrft.strategy import checkpoint, hf_folder
from lightrft.strategy.adapters import adapters_of, is_adapter, merged, plain_name
from lightrft.strategy.recompute import recompute_activations
from lightrft.strategy.weight_files import WeightFiles
from lightrft.types import EngineStatus, RequestOutput

Optimizer = torch.optim.Optimizer
Scheduler = torch.optim.lr_scheduler.LRScheduler
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """The optimizer that `prepare_trainable` makes (decoupled weight decay, Loshchilov & Hutter 2019, on every trained parameter)."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def over(self, model: torch.nn.Module, *, foreach: bool | None = None) -> torch.optim.AdamW:
        """torch's AdamW over the parameters of `model` that require gradients."""
        return torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            foreach=foreach,
        )


@dataclass(frozen=True)
class StepResult:
    """What a step did: the global gradient norm before clipping (the same on every rank), and whether the step was skipped."""

    grad_norm: float
    skipped: bool


class StrategyBase(ABC):
    """A training backend and, composed into it, the controller of a colocated inference engine.

    Built by `get_strategy`. Unless a method says otherwise it is *collective*: every rank calls it, in the same order.

    Contract of the update: `backward` takes this rank's *share* of the loss, already divided by the global denominator (such as the number
    of completion tokens over all ranks and micro-batches of the step). The gradient of a step is the plain sum of all shares, over
    micro-batches and ranks, so it does not depend on how the batch was cut.
    """

    needs_process_group: ClassVar[bool] = False
    """Whether the backend needs a process group even for one rank."""

    def __init__(self, config: Config, *, spec: StrategySpec, registry: Registry) -> None:
        self.config = config
        self.spec = spec
        self.registry = registry
        self.world = self._join_world()
        self.skipped_steps: dict[str, int] = {}
        self._offloaded: set[int] = set()
        self._unfinished: WeakSet[torch.nn.Module] = WeakSet()
        self._controller: RolloutController | None = None

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

        Raises:
            ValueError: N does not divide the world size.
            CapabilityError: N > 1 on a backend without the capability `sharded_frozen`.
        """
        if shard_size is not None and (shard_size < 1 or self.world.world_size % shard_size):
            raise ValueError(f"shard_size={shard_size} does not divide the world size {self.world.world_size}")
        if shard_size is not None and shard_size > 1:
            self._require(Capability.SHARDED_FROZEN, f"shard_size={shard_size}")
        if weights is not None:
            weights.fill_buffers(model)
        return self._prepare_frozen(model.requires_grad_(False).eval(), shard_size, weights)

    def prepare_trainable(
        self, model: torch.nn.Module, *, optimizer: AdamWSettings, weights: WeightFiles | None = None
    ) -> tuple[torch.nn.Module, Optimizer]:
        """Makes a model ready for training and its AdamW, over the parameters that require gradients.

        Every rank brings the same weights, or a model on the meta device and `weights` (see `prepare_model`). The model is put into eval
        mode, which changes no gradient but switches dropout off: the policy that is updated has to be the one that sampled, or the ratio
        of a first step is not 1. With `gradient_checkpointing` its blocks compute their activations again in the backward pass.

        Raises:
            ValueError: no parameter requires gradients.
        """
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("no parameter of the model requires gradients; use prepare_model for a frozen model")
        if weights is not None:
            weights.fill_buffers(model)
            weights.take_values(model)
        if self.config.gradient_checkpointing:
            recompute_activations(model)
        return self._prepare_trainable(model.eval(), optimizer, weights)

    def unwrap(self, model: torch.nn.Module) -> Any:
        """The HF model inside what `prepare_*` returned: for its `config` and `generation_config`, not for forward passes. Not
        collective.
        """
        inner: Any = self._unwrap(model)
        return inner.get_base_model() if hasattr(inner, "peft_config") else inner

    # ---- the update ----------------------------------------------------------------------------------------------------------------------

    def accumulate(
        self, micro_batches: Sequence[T], share: Callable[[T], torch.Tensor], model: torch.nn.Module, optimizer: Optimizer
    ) -> None:
        """The backward passes of one step: `share` gives this rank's share of the loss (see the class) for one of its micro-batches.

        Ranks may bring different numbers of micro-batches, or none: those that run out go on with passes that are worth exactly 0, for
        sharded models need every rank in every pass. `optimizer_step` comes next.

        Raises:
            ValueError: ranks bring different numbers, and the model is none of transformers' text models, which know a smallest input of
                theirs that goes through all of their parts.
        """
        most = max(1, self.all_reduce(len(micro_batches), "max"))
        mine = len(micro_batches)
        for index in range(most):
            # Without a name for the loss: one would keep its graph until the next loss is there, and memory would hold both.
            self.backward(
                share(micro_batches[index]) if index < mine else self._worth_nothing(model), model, optimizer, final=index == most - 1
            )

    def backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, *, final: bool = True) -> None:
        """Adds the gradient of this rank's share of the loss (see the class). Every rank makes the same number of calls in a step.

        `final` False says that more micro-batches follow before the step: a backend may leave out communication until the final one.

        Raises:
            ValueError: `loss` is not a scalar.
        """
        if loss.dim() != 0:
            raise ValueError(f"loss has shape {tuple(loss.shape)}; backward takes a scalar, this rank's share of the global loss")
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

    def save_model(self, model: torch.nn.Module, folder: str | Path, *, tokenizer: Any = None) -> Path:
        """Writes a HF folder (config, safetensors, tokenizer) on rank 0, under a temporary name first; adapters are merged."""
        return hf_folder.save_hf_folder(self, model, Path(folder), tokenizer=tokenizer)

    def save_adapter(self, model: torch.nn.Module, folder: str | Path) -> Path:
        """Writes the adapters of a model that peft wrapped, as the folder that `PeftModel.from_pretrained` reads.

        Raises:
            ValueError: the model has none.
        """
        if not adapters_of(self._unwrap(model)):
            raise ValueError("save_adapter: the model has no adapters; use save_model")
        return hf_folder.save_adapter_folder(self, model, Path(folder))

    def export_weights(self, model: torch.nn.Module, *, dtype: torch.dtype | None = None) -> Iterator[WeightBucket]:
        """All parameters, full, as buckets of at most `weight_bucket_mb`, under HF names, cast to `dtype` (None: their own).

        Adapters leave merged into their matrices, as a model without them; weights are cast before they are gathered, but not those of a
        model with adapters, which are merged in between. The iterator is collective: every rank reads it to the end.
        """
        max_bytes = self.config.weight_bucket_mb * 2**20
        adapters = adapters_of(self._unwrap(model))
        if not adapters:
            return self._export_weights(model, dtype, max_bytes)
        return merged(self._export_weights(model, None, max_bytes), adapters, dtype=dtype, max_bytes=max_bytes)

    # ---- the inference engine ------------------------------------------------------------------------------------------------------------

    def setup_inference_engine(
        self, args: Config | argparse.Namespace, engine_type: str | None = None, *, model_path: str | None = None
    ) -> None:
        """Builds this rank's share of the engine, awake, with the weights of `model_path` (default: `args.model_name_or_path`) as version
        0.

        `engine_type` overrides `args.engine_type`.

        Raises:
            ConfigError: the engine is unknown, not installed, or cannot do what the settings ask.
        """
        if self._controller is not None:
            raise StrategyStateError("setup_inference_engine was called before; a strategy has one engine")
        config = as_config(args)
        if engine_type is not None:
            config = config.model_copy(update={"engine_type": engine_type})
        self._controller = make_controller(config, registry=self.registry, world=self.world, model_path=model_path)

    @property
    def inference_engine(self) -> InferenceEngine | None:
        """This rank's engine object; None on ranks that another rank's engine serves. Not collective."""
        return self._engine().engine

    @property
    def inference_engine_status(self) -> EngineStatus:
        """Where the engine's memory is. Not collective."""
        return self._engine().status

    @property
    def engine_group(self) -> Any:
        """The process group of the ranks that share this engine (None: one rank). Not collective."""
        return self._engine().group.group

    @property
    def weight_version(self) -> int:
        """Number of weight updates so far; every completion carries the number that it was sampled at. Not collective."""
        return self._engine().version

    @property
    def engine_calls(self) -> int:
        """Number of generations so far, from which the seeds of the next follow. Not collective."""
        return self._engine().calls

    def restore_engine(self, *, weight_version: int, calls: int) -> None:
        """Goes on counting where a run was saved. An update of the weights has to follow before anything is generated. Not collective."""
        self._engine().restore(version=weight_version, calls=calls)

    def gather_and_generate(
        self,
        sampling_params: Any,
        all_prompt_token_ids: Sequence[Sequence[int]] | None = None,
        all_prompts: Sequence[str] | None = None,
        all_images: Sequence[Any] | None = None,
        images_num: Sequence[int] | None = None,
        sleep_engine: bool = True,
        *,
        logprobs: Sequence[bool] | bool = False,
        on_finished: Callable[[int, RequestOutput], None] | None = None,
    ) -> list[RequestOutput]:
        """Generates for this rank's prompts through its group's engine; outputs in the order of the prompts, n completions each.

        `sampling_params`: our SamplingParams, a mapping of its fields, or what the engine's `read_sampling` takes beside them. Ranks may
        bring different numbers of prompts, or none. `logprobs` asks for sampled-token log-probs, for all prompts or one by one.
        Wakes the engine before and, with `sleep_engine`, puts it to sleep after.

        `on_finished(i, output)` is called, in this thread, for prompts of this rank that have ended while others still generate: on ranks
        that hold an engine, where the engine says so, in any order. It has to return at once.
        """
        controller = self._engine()
        return controller.gather_and_generate(
            controller.read_sampling(sampling_params),
            prompt_token_ids=all_prompt_token_ids,
            prompts=all_prompts,
            images=all_images,
            images_num=images_num,
            sleep_engine=sleep_engine,
            logprobs=logprobs,
            on_finished=on_finished,
        )

    def update_engine_weights(self, actor: torch.nn.Module) -> None:
        """Gives the engine the actor's weights, raises `weight_version`, and resets the engine's caches.

        Raises:
            WeightSyncError: they do not fit the engine's model (nothing was sent), or it refused them, or does not hold them afterwards; on
                all ranks together.
        """
        controller = self._engine()
        controller.update_weights(self.export_weights(actor, dtype=controller.dtype), shapes=self._exported_shapes(actor))

    def differing_engine_weights(self, actor: torch.nn.Module, *, rounded_to: torch.dtype | None = None) -> list[str] | None:
        """The names of the engine's tensors that are not bitwise the actor's, alike on every rank; None where the engine gives no sums.

        `rounded_to` asks for the actor as it would be after a cast to that dtype and back.
        """
        controller = self._engine()
        buckets = self.export_weights(actor, dtype=rounded_to or controller.dtype)
        return controller.differing_weights([replace(w, tensor=w.tensor.to(controller.dtype)) for w in bucket] for bucket in buckets)

    def reset_engine_cache(self) -> None:
        """The engine forgets what it computed before; a sync does this by itself."""
        self._engine().reset_cache()

    @property
    def engine_dtype(self) -> torch.dtype:
        """The dtype in which the engine is given the weights. Not collective."""
        return self._engine().dtype

    @property
    def engine_gives_sums(self) -> bool:
        """Whether syncs can be proved by checksums of the engine's own tensors. Not collective."""
        return self._engine().gives_sums

    def wakeup_inference_engine(self) -> None:
        """Makes the engine ready to generate. Idempotent."""
        self._engine().wake_up()

    def maybe_sleep_inference_engine(self) -> None:
        """Puts the engine to sleep where `enable_engine_sleep` says so and the engine can. Idempotent."""
        self._engine().maybe_sleep()

    def shutdown_inference_engine(self) -> None:
        """Ends this rank's share of the engine; its ranks train on. Idempotent. Not collective."""
        if self._controller is not None:
            self._controller.shutdown()
            self._controller = None

    def shutdown(self) -> None:
        """Ends the engine and then the process group. Idempotent."""
        self.shutdown_inference_engine()
        self._leave_world()

    # ---- hooks: what a backend writes ----------------------------------------------------------------------------------------------------

    def _join_world(self) -> World:
        """Joins the ranks; override for a backend that starts the process group itself."""
        return World.join(need_group=self.needs_process_group)

    def _leave_world(self) -> None:
        """The reverse, idempotent; override for a backend that keeps groups of its own."""
        self.world.leave()

    @abstractmethod
    def _prepare_frozen(self, model: torch.nn.Module, shard_size: int | None, weights: WeightFiles | None) -> torch.nn.Module:
        """Returns the model ready for forward passes, on the device. `model` is in eval mode without gradients; `shard_size` divides the
        world.

        With `weights` its parameters are on the meta device; `weights.fill(model)` is the plain way to give it all of them.
        """

    @abstractmethod
    def _prepare_trainable(
        self, model: torch.nn.Module, settings: AdamWSettings, weights: WeightFiles | None
    ) -> tuple[torch.nn.Module, Optimizer]:
        """Returns the model that is trained, and `settings` as an optimizer over those of its parameters that require gradients.

        `model` is in eval mode (no dropout) and has such parameters; `weights` as in `_prepare_frozen`. What is returned is what the other
        hooks are given.
        """

    @abstractmethod
    def _backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, final: bool) -> None:
        """Adds the gradient of `loss`, a scalar, this rank's share: gradients are summed over micro-batches and ranks, not averaged.

        `final` says that no micro-batch follows before the step; every rank makes the same number of calls.
        """

    @abstractmethod
    def _step(self, optimizer: Optimizer, model: torch.nn.Module, max_norm: float) -> StepResult:
        """Clips the norm over this model and all ranks (`max_norm` 0: not at all), steps, clears the gradients.

        A norm that is not finite skips the step on all ranks alike. The result has the norm before clipping.
        """

    @abstractmethod
    def _export_weights(self, model: torch.nn.Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        """Yields every parameter, whole, as buckets of at most `max_bytes` (`in_buckets`), cast to `dtype` before it is gathered (None: its
        own). Collective; a tied parameter once, with all its names (`tied_names`).
        """

    @abstractmethod
    def _save_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        """Writes model and optimizer into an existing empty folder that all ranks see. Collective."""

    @abstractmethod
    def _load_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        """The reverse. Collective. The parameters' names were compared before."""

    def _describe(self) -> dict[str, Any]:
        """Override where the backend has settings of its own."""
        return {}

    def _unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Override where `prepare_*` returns a wrapper."""
        return model

    def _shapes(self, model: torch.nn.Module) -> dict[str, list[int]]:
        """Names and full shapes of the parameters. Override where a sharded parameter does not know its full shape."""
        return {name: list(p.shape) for name, p in model.named_parameters()}

    def _move_optimizer_state(self, optimizer: Optimizer, to: Literal["cpu", "device"]) -> None:
        """Override together with the capability `optimizer_offload`."""
        raise AssertionError(f"{type(self).__name__} declares optimizer_offload and does not move optimizer state")

    # ---- guards and parts ----------------------------------------------------------------------------------------------------------------

    def _engine(self) -> RolloutController:
        if self._controller is None:
            raise StrategyStateError("no inference engine; call setup_inference_engine first")
        return self._controller

    def _require(self, capability: Capability, asked: str) -> None:
        if capability not in self.spec.capabilities:
            having = ", ".join(self.registry.having("strategy", capability)) or "no installed one"
            raise CapabilityError(
                f"{asked} needs the capability {str(capability)!r}, which strategy {self.spec.name!r} does not declare; "
                f"one that does: {having}"
            )

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
        names = tied_names(self._unwrap(model))
        return {tuple(map(plain_name, names[name])): tuple(shape) for name, shape in self._shapes(model).items() if not is_adapter(name)}
