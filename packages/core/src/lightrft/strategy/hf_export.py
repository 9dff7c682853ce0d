"""A trained model becomes a HF folder that transformers, engines and `lightrft eval` load as it is."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from lightrft.distributed.atomic_folder import fresh_beside, removed_on_failure, replace
from lightrft.distributed.consensus import together
from lightrft.distributed.world import World
from lightrft.errors import CheckpointError
from lightrft.strategy.source_folder import SourceFolder, source_folder
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.hf_names import under_file_names
from lightrft.weights.lora_merge import is_adapter, plain_name

ADAPTER_FILE = "adapter_model.safetensors"
SHARD_BYTES = 4 * 2**30

Shard = dict[str, torch.Tensor]
SaveDtype = Literal["source", "float32", "bfloat16", "float16"]


def save_hf_folder(
    folder: Path,
    *,
    hf_model: Any,
    buckets: Iterable[WeightBucket],
    tokenizer: Any,
    world: World,
    source: str | Path | None = None,
    dtype: SaveDtype = "source",
) -> Path:
    """Collective; rank 0 writes, files of 4 GiB, a tied weight once, under the names that `save_pretrained` gives.

    `source` is the folder or hub name that the model came from (default: what its configuration says): the files beside its weights travel
    along, byte by byte, and each tensor is written in the dtype that it had there, or as it is where that is not known. `dtype` sets one
    for all instead.

    Raises:
        CheckpointError: it cannot be written, whatever the reason (PeerError on the other ranks); what was there before stays.
    """
    doing = f"saving {str(folder)!r}"
    temporary = fresh_beside(world, folder)
    state = _on_rank_0(buckets, world)

    def finish() -> None:
        try:
            _write(temporary, state, hf_model, source_folder(source or getattr(hf_model.config, "_name_or_path", "")), dtype)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            replace(temporary, folder)
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # libraries refuse to write what they read
            text = " ".join(str(error).split())
            raise CheckpointError(f"{doing}: {type(error).__name__}: {text}; what was there before is unchanged") from error

    with removed_on_failure(world, temporary):
        together(world, doing, finish, rank_0_only=True)
    return folder


def save_adapter_folder(folder: Path, *, config: Any, buckets: Iterable[WeightBucket], world: World) -> Path:
    """Collective; rank 0 writes peft's two files: the adapters under peft's names, and their configuration."""
    temporary = fresh_beside(world, folder)
    held: Shard = {}
    for bucket in buckets:
        for weight in bucket if world.is_first else ():
            if is_adapter(weight.names[0]):
                held[plain_name(weight.names[0])] = weight.tensor.detach().to("cpu", copy=True).contiguous()

    def finish() -> None:
        save_file(held, temporary / ADAPTER_FILE, metadata={"format": "pt"})
        saved = copy.copy(config)
        saved.inference_mode = True
        saved.save_pretrained(temporary)
        replace(temporary, folder)

    with removed_on_failure(world, temporary):
        together(world, f"saving {str(folder)!r}", finish, rank_0_only=True)
    return folder


def _on_rank_0(buckets: Iterable[WeightBucket], world: World) -> Shard:
    """The weights on rank 0's host; other ranks take part in the gathers and keep nothing."""
    held: Shard = {}
    for bucket in buckets:
        for weight in bucket if world.is_first else ():
            held[weight.names[0]] = weight.tensor.detach().to("cpu", copy=True).contiguous()
    return held


def _write(folder: Path, state: Shard, hf_model: Any, source: SourceFolder, dtype: SaveDtype) -> None:
    model_class = _library_class(hf_model)
    ignored = getattr(hf_model, "_keys_to_ignore_on_save", None) or ()
    state = {name: tensor for name, tensor in state.items() if name not in ignored}
    if model_class is not None:
        state = under_file_names(state, hf_model, model_class)
    state = {name: _cast(name, tensor, source, dtype) for name, tensor in state.items()}
    _write_shards(folder, list(_sharded(state)))
    if source.folder is None and getattr(hf_model, "generation_config", None) is not None:
        hf_model.generation_config.save_pretrained(folder)
    _write_config(folder, hf_model, model_class, state, source)
    source.copy_files(folder)


def _library_class(hf_model: Any) -> type[PreTrainedModel] | None:
    """Its library's class: a backend may have made a subclass on the spot, which no module knows."""
    known = [
        c for c in type(hf_model).__mro__ if issubclass(c, PreTrainedModel) and getattr(sys.modules[c.__module__], c.__name__, None) is c
    ]
    return known[0] if known else None


def _cast(name: str, tensor: torch.Tensor, source: SourceFolder, dtype: SaveDtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    wanted = source.dtype_of(name) if dtype == "source" else getattr(torch, dtype)
    return tensor.to(wanted or tensor.dtype)


def _write_config(folder: Path, hf_model: Any, model_class: type[PreTrainedModel] | None, state: Shard, source: SourceFolder) -> None:
    """The model's configuration with what `save_pretrained` would add: engines choose the class by `architectures`, loaders the dtype."""
    config = copy.deepcopy(hf_model.config)
    floating = [tensor.dtype for tensor in state.values() if tensor.is_floating_point()]
    config.dtype = max(set(floating), key=floating.count) if floating else torch.float32
    if model_class is not None:
        config.architectures = [model_class.__name__]
    if hasattr(config, "use_cache"):  # off while a model trains
        config.use_cache = source.config.get("use_cache", True)
    config.save_pretrained(folder)
    if "auto_map" in source.config:  # as it came: a hub name's was rewritten to point there
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"auto_map": source.config["auto_map"]}, indent=2), "utf-8")


def _sharded(state: Shard) -> Iterator[Shard]:
    """In order, at most 4 GiB each; a larger tensor alone."""
    shard: Shard = {}
    held = 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > SHARD_BYTES:
            yield shard
            shard, held = {}, 0
        shard[name] = tensor
        held += size
    yield shard


def _write_shards(folder: Path, shards: list[Shard]) -> None:
    if len(shards) == 1:
        save_file(_owned(shards[0]), folder / "model.safetensors", metadata={"format": "pt"})
        return
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(_owned(shard), folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    total = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _owned(shard: Shard) -> Shard:
    """Each with memory of its own: an expert that was taken out of a stack is a view of it."""
    return {n: t if t.untyped_storage().nbytes() == t.nbytes and t.is_contiguous() else t.clone().contiguous() for n, t in shard.items()}
