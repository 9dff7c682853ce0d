"""The strategy's methods for the inference engine beside it. Each method delegates to the `RolloutController` that it composes."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from lightrft.config.load import as_config
from lightrft.config.schema import Config
from lightrft.distributed.mesh import Mesh
from lightrft.distributed.world import World
from lightrft.engine.base import InferenceEngine
from lightrft.engine.stop_tokens import StopTokens
from lightrft.errors import StrategyStateError
from lightrft.plugins.registry import Registry
from lightrft.rollout.controller import RolloutController
from lightrft.rollout.conversations import Talks
from lightrft.rollout.setup import make_controller
from lightrft.strategy.adapter_export import AdapterExport
from lightrft.types import EngineStatus, RequestOutput, SamplingParams
from lightrft.weights.buckets import WeightBucket


class EngineSide(ABC):
    """The half of `StrategyBase` that a backend's author never touches. Collective where nothing else is said."""

    registry: Registry
    world: World
    mesh: Mesh
    _controller: RolloutController | None = None

    @abstractmethod
    def export_weights(self, model: torch.nn.Module, *, dtype: torch.dtype | None = None) -> Iterator[WeightBucket]:
        """See `StrategyBase`."""

    @abstractmethod
    def _exported_shapes(self, model: torch.nn.Module) -> dict[tuple[str, ...], tuple[int, ...]]:
        """All names, and the full shape, of each weight of `export_weights`."""

    @abstractmethod
    def _adapter_export(self, model: torch.nn.Module) -> AdapterExport:
        """What of the model an engine is given that keeps the base weights; without `modules` where it has no adapters."""

    def setup_inference_engine(
        self, args: Config | argparse.Namespace, engine_type: str | None = None, *, model_path: str | None = None
    ) -> None:
        """Builds this rank's part of the engine, awake, with the weights of `model_path` (default: `args.model_name_or_path`) as version
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
        self.mesh = replace(self.mesh, engine=self._controller.group)

    @property
    def inference_engine(self) -> InferenceEngine | None:
        """This rank's engine object; None on ranks that another rank's engine serves. Not collective."""
        return self._engine().engine

    @property
    def inference_engine_status(self) -> EngineStatus:
        """Where the engine's memory is. Not collective."""
        return self._engine().status

    @property
    def stop_tokens(self) -> StopTokens | None:
        """The end-of-sequence tokens of the model's own files by their source; None without an engine, or where none are named. Not
        collective.
        """
        return self._controller.stop_tokens if self._controller is not None else None

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
        all_videos: Sequence[Any] | None = None,
        videos_num: Sequence[int] | None = None,
        logprobs: Sequence[bool] | bool = False,
        on_finished: Callable[[int, RequestOutput], None] | None = None,
    ) -> list[RequestOutput]:
        """Generates for this rank's prompts through its group's engine; outputs in the order of the prompts, n completions each.

        `sampling_params`: our SamplingParams, a mapping of its fields, or what the engine's `read_sampling` takes beside them. Ranks may
        bring different numbers of prompts, or none. `all_images` (PIL images, paths, or files' bytes) is flat, `images_num` says how many
        belong to each prompt, which holds the processor's image token once for each. `all_videos` and `videos_num` likewise, with its
        video token, where the engine has the capability `video`: a list of frames (images as before), an array uint8
        [frames, height, width, 3], or the path or bytes of an animation (GIF, WebP, PNG). `logprobs` asks for sampled-token log-probs, for
        all prompts or one by one. Wakes the engine before and, with `sleep_engine`, puts it to sleep after.

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
            videos=all_videos,
            videos_num=videos_num,
            sleep_engine=sleep_engine,
            logprobs=logprobs,
            on_finished=on_finished,
        )

    def converse(
        self,
        sampling_params: SamplingParams,
        all_prompt_token_ids: Sequence[Sequence[int]],
        talks: Talks,
        *,
        logprobs: Sequence[bool] | bool = False,
    ) -> int:
        """Draws turns through the group's engine until `talks`, this rank's conversations, have no further ones: first n completions for
        each prompt, then what `talks` asks for. Returns how many prompts the ranks before this one brought.

        Where the engine has the capability `stepping` a turn that follows joins those that are drawn; else all that go on are drawn
        together when all answers are there. What is drawn of a turn follows from its number, the place of its conversation among those of
        all ranks and the seed, with either. Ranks may bring different numbers of prompts, or none, and conversations of any number of
        turns. Wakes the engine before, and leaves it awake.
        """
        return self._engine().converse(sampling_params, prompt_token_ids=all_prompt_token_ids, logprobs=logprobs, talks=talks)

    def update_engine_weights(self, actor: torch.nn.Module) -> None:
        """Gives the engine the actor's weights, raises `weight_version`, and resets the engine's caches.

        Where the engine takes adapters (`lora_sync`) and the actor has some, these alone are sent. Before the first time, the actor's other
        weights are compared with those that the engine was built with, by their checksums.

        Raises:
            WeightSyncError: they do not fit the engine's model (nothing was sent), or it refused them, or does not hold them afterwards; on
                all ranks together.
        """
        controller = self._engine()
        export = self._adapter_export(actor)
        if controller.takes_adapters and export.modules:
            controller.compare_base(lambda: export.base(controller.dtype))
            controller.update_adapters(export.adapters(controller.dtype), modules=export.modules)
            return
        controller.update_weights(self.export_weights(actor, dtype=controller.dtype), shapes=self._exported_shapes(actor))

    def differing_engine_weights(self, actor: torch.nn.Module, *, rounded_to: torch.dtype | None = None) -> list[str] | None:
        """The names of the engine's tensors that are not bitwise the actor's, identical on every rank; None where it gives no checksums.

        `rounded_to` asks for the actor as it would be after a cast to that dtype and back.
        """
        controller = self._engine()
        dtype, export = rounded_to or controller.dtype, self._adapter_export(actor)
        if not (controller.takes_adapters and export.modules):
            return controller.differing_weights(_in(controller.dtype, self.export_weights(actor, dtype=dtype)))
        base = controller.differing_weights(_in(controller.dtype, export.base(dtype)))
        adapters = controller.differing_weights(_in(controller.dtype, export.adapters(dtype)), adapters=True)
        return None if base is None or adapters is None else base + adapters

    def reset_engine_cache(self) -> None:
        """The engine forgets what it computed before; a sync does this by itself."""
        self._engine().reset_cache()

    @property
    def synced_bytes(self) -> int:
        """Of the weights that the last sync sent to each engine. Not collective."""
        return self._engine().sent_bytes

    @property
    def engine_dtype(self) -> torch.dtype:
        """The dtype in which the engine is given the weights. Not collective."""
        return self._engine().dtype

    @property
    def sent_fingerprint(self) -> int | None:
        """One number of the weights that the last sync sent from this rank; None where there is no engine, or syncs are not verified. Not
        collective.
        """
        return self._engine().sent_fingerprint

    @property
    def unverified_weights(self) -> list[str]:
        """Names of what the last sync sent and this rank's engine gives no checksum for; empty also where it gives none at all
        (`engine_gives_checksums`), where this rank has no engine, or syncs are not verified. Not collective.
        """
        return list(self._engine().unverified)

    @property
    def engine_gives_checksums(self) -> bool:
        """Whether syncs can be verified by checksums of the engine's own tensors. Not collective."""
        return self._engine().gives_checksums

    def wakeup_inference_engine(self) -> None:
        """Makes the engine ready to generate. Idempotent."""
        self._engine().wake_up()

    def maybe_sleep_inference_engine(self) -> None:
        """Puts the engine to sleep where `enable_engine_sleep` says so and the engine can. Idempotent."""
        self._engine().maybe_sleep()

    def shutdown_inference_engine(self) -> None:
        """Ends this rank's part of the engine; its ranks train on. Idempotent. Not collective."""
        if self._controller is not None:
            self._controller.shutdown()
            self._controller = None

    def _engine(self) -> RolloutController:
        if self._controller is None:
            raise StrategyStateError("no inference engine; call setup_inference_engine first")
        return self._controller


def _in(dtype: torch.dtype, buckets: Iterable[WeightBucket]) -> Iterator[WeightBucket]:
    """The same weights in that dtype; buffers as they are."""
    return ([w if w.is_buffer else replace(w, tensor=w.tensor.to(dtype)) for w in bucket] for bucket in buckets)
