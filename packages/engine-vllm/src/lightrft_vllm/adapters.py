"""Adapters in vLLM: laid into the tensors that its LoRA layers compute with, in memory, and read back out of them.

The functions run inside `LLM.apply_model`. vLLM packs the matrices of a fused layer beside each other, as its `packed_modules` says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lightrft.weights.adapters import LowRank, adapter_names
from lightrft.weights.checksum import NOTHING, WeightChecksum, tensor_checksum

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM has room for (`MaxLoRARanks`); a smaller adapter is filled up with zeros."""

PREFIX = "base_model.model."
"""Of peft's names, which vLLM reads."""

SLOT = 0
"""There is one adapter at a time, in the only slot."""


def room_for(rank: int) -> int:
    """The least of vLLM's ranks that holds an adapter of this one."""
    return next(known for known in RANKS if known >= rank)


def unadaptable(model: Any, *, modules: Collection[str]) -> list[str]:
    """Those that no LoRA layer of vLLM stands for."""
    known = {child for name in model.lora_manager.modules for child in _children(model, name)}
    return [module for module in modules if _own_name(model, module) not in known]


def put_adapters(model: Any, *, adapters: Mapping[str, LowRank], rank: int, number: int) -> None:
    """These in place of the ones before, under another `number`."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = model.lora_manager
    both = {module: zip(adapter_names(module), (low.a, low.b), strict=True) for module, low in adapters.items()}
    tensors = {PREFIX + name: tensor for pairs in both.values() for name, tensor in pairs}
    lora = LoRAModel.from_lora_tensors(
        lora_model_id=number,
        tensors=tensors,
        peft_helper=PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),  # a scale of 1: B holds it
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=_renaming(model),
    )
    manager.remove_all_adapters()
    manager.add_adapter(lora)
    manager.activate_adapter(number)


def read_adapters(model: Any, *, modules: Collection[str]) -> dict[tuple[str, ...], WeightChecksum]:
    """The checksums of A and B of each of these modules, from the tensors of its LoRA layer."""
    found: dict[tuple[str, ...], WeightChecksum] = {}
    named = {_own_name(model, module): module for module in modules}
    for own, layer in model.lora_manager.modules.items():
        for index, child in enumerate(_children(model, own)):
            if child in named:
                for name, value in zip(adapter_names(named[child]), _checksums(layer, index), strict=True):
                    found[(name,)] = value
    return found


def _checksums(layer: Any, index: int) -> Iterator[WeightChecksum]:
    """Of A and of B in one part of a layer; several ranks have shards of one of the two, or hold the same one."""
    from vllm.model_executor.layers.linear import ReplicatedLinear, RowParallelLinear

    a, b = layer.lora_a_stacked[index][SLOT], layer.lora_b_stacked[index][SLOT]
    ranks, rank = layer.tp_size, layer.tp_rank
    rows = isinstance(layer.base_layer, RowParallelLinear)
    yield WeightChecksum(*tensor_checksum(a), sharded=rows and ranks > 1)
    columns = ranks > 1 and not rows and not isinstance(layer.base_layer, ReplicatedLinear)
    copies = getattr(layer.base_layer, "num_kv_head_replicas", 1) if index > 0 else 1
    if columns and rank % copies:  # a shard that another rank holds and counts, too
        yield WeightChecksum(NOTHING.bits, NOTHING.squares, sharded=True)
    else:
        yield WeightChecksum(*tensor_checksum(b), sharded=columns)


def _children(model: Any, own: str) -> list[str]:
    """vLLM's names of the matrices in one of its LoRA layers, in the order of their parts."""
    return list(model.lora_manager.packed_modules.get(own, [own]))


def _own_name(model: Any, module: str) -> str:
    from vllm.lora.utils import parse_fine_tuned_lora_name

    name, _is_a = parse_fine_tuned_lora_name(PREFIX + adapter_names(module)[0], _renaming(model))
    return str(name)


RENAMING_ALONE = ("get_rename_mapper", "get_unstacked_mapper")
"""A mapper's method that leaves out the fusing of layers, as vLLM names it from 0.32 on and before."""


def _renaming(model: Any) -> Any:
    """vLLM's mapping of a checkpoint's names to its own, without what it fuses; None where the two are the same."""
    mapper: Any = getattr(model, "hf_to_vllm_mapper", None)
    known = next((name for name in RENAMING_ALONE if hasattr(mapper, name)), None)
    return getattr(mapper, known)() if known else mapper
