"""How does a trained model become a HF folder that any library loads?"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from lightrft.distributed.atomic_folder import fresh_beside, removed_on_failure, replace
from lightrft.distributed.consensus import together
from lightrft.distributed.world import World
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.lora_merge import is_adapter, plain_name

ADAPTER_FILE = "adapter_model.safetensors"
SHARD_BYTES = 4 * 2**30

Shard = dict[str, torch.Tensor]


def save_hf_folder(folder: Path, *, hf_model: Any, buckets: Iterable[WeightBucket], tokenizer: Any, world: World) -> Path:
    """Collective; rank 0 writes. Weights keep their dtype and are cut into files of 4 GiB; tied ones are stored once."""
    doing = f"saving {str(folder)!r}"
    temporary = fresh_beside(world, folder)
    shards = _on_rank_0(buckets, world)

    def finish() -> None:
        _write_shards(temporary, shards)
        _config(hf_model, shards).save_pretrained(temporary)
        if getattr(hf_model, "generation_config", None) is not None:
            hf_model.generation_config.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        replace(temporary, folder)

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


def _on_rank_0(buckets: Iterable[WeightBucket], world: World) -> list[Shard]:
    """The weights on rank 0's host; other ranks take part in the gathers and keep nothing."""
    shards: list[Shard] = [{}]
    held = 0
    for bucket in buckets:
        for weight in bucket if world.is_first else ():
            size = weight.tensor.numel() * weight.tensor.element_size()
            if held and held + size > SHARD_BYTES:
                shards.append({})
                held = 0
            shards[-1][weight.names[0]] = weight.tensor.detach().to("cpu", copy=True).contiguous()
            held += size
    return shards


def _config(hf_model: Any, shards: list[Shard]) -> Any:
    """The model's configuration with what `save_pretrained` would add: engines choose the class by `architectures`, loaders the dtype."""
    config = copy.deepcopy(hf_model.config)
    config.dtype = next(iter(shards[0].values())).dtype
    # Its library's class: a backend may have made a subclass on the spot, which no module knows.
    known = [
        c for c in type(hf_model).__mro__ if issubclass(c, PreTrainedModel) and getattr(sys.modules[c.__module__], c.__name__, None) is c
    ]
    if known:
        config.architectures = [known[0].__name__]
    return config


def _write_shards(folder: Path, shards: list[Shard]) -> None:
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    total = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
