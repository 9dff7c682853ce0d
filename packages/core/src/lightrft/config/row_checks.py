"""Whether a model's rows can be packed, shared among ranks, and scored beside others: by what its config.json says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightrft.config.model_checks import ModelShape, model_shape, model_values
from lightrft.config.schema import Config

LAYER_LISTS = ("layer_types", "layers_block_type", "block_types")
STATELESS = frozenset({"full_attention", "sliding_attention", "attention", "mlp", "moe", "dense", "sparse"})
"""Kinds of layers in which a token meets others of its row by causal attention only, or not at all."""

STATES = {
    "state_size": "a state-space model",
    "ssm_state_size": "a state-space model",
    "mamba_d_state": "a state-space model",
    "lru_width": "a recurrent model",
    "conv_L_cache": "a model with convolutions along the row",
    "linear_conv_kernel_dim": "a model with linear attention",
}
"""Keys of configurations that have no list of their layers, and what they tell."""

KINDS = {"rwkv": "a recurrent model", "xlstm": "a recurrent model", "bloom": "a model with ALiBi", "mpt": "a model with ALiBi"}
"""What the keys do not tell, by `model_type`."""


def row_fit(config: Config, *, world_size: int) -> Iterator[str]:
    """What `packing_samples`, `sp_size` and the lengths ask of the model and of the ranks, and cannot have."""
    values = model_values(config)
    if wrong := list(shared_ranks(config, world_size=world_size)):
        yield from wrong
    elif shape := model_shape(config):
        yield from _heads(config.sp_size, shape, world_size)
    if values is None:
        return
    asked = {"packing_samples": config.packing_samples, "sp_size": config.sp_size > 1}
    problem = packing_problem(values)
    for name in [name for name, is_asked in asked.items() if is_asked and problem]:
        yield f"{name}={getattr(config, name)!r}: the model is {problem}, whose sequences cannot stand in one row; leave {name} out"
    yield from _rope(config, values)


def shared_ranks(config: Config, *, world_size: int) -> Iterator[str]:
    """Whether sequences can have so many ranks."""
    if config.sp_size not in (sizes := _divisors(world_size)):
        yield f"sp_size={config.sp_size} does not divide the world size {world_size}; possible: {_listed(sizes)}"


def packing_problem(values: Mapping[str, Any]) -> str:
    """What kind of model cannot have several sequences in one row, in words ("a state-space model"); empty: none known.

    `values` are those of a text model's config.json, or of its configuration. What is not known here is found by the
    check before the first packed pass.
    """
    if values.get("is_encoder_decoder"):
        return "an encoder and a decoder"
    layers = next((values[name] for name in LAYER_LISTS if values.get(name)), None)
    if layers is not None:
        other = sorted(set(layers) - STATELESS)
        return f"one with layers of the kind {', '.join(other)}" if other else ""
    if values.get("alibi"):
        return "a model with ALiBi"
    known = KINDS.get(str(values.get("model_type")), "")
    return known or next((words for name, words in STATES.items() if values.get(name) is not None), "")


def _heads(sp_size: int, shape: ModelShape, world_size: int) -> Iterator[str]:
    if shape.heads and shape.heads % sp_size:
        possible = [n for n in _divisors(world_size) if shape.heads % n == 0]
        yield f"sp_size={sp_size} does not divide the model's {shape.heads} attention heads; possible: {_listed(possible)}"


def _rope(config: Config, values: Mapping[str, Any]) -> Iterator[str]:
    """Rotary frequencies that follow the longest sequence of a batch: others in it would get log-probs that are not theirs."""
    longest = config.prompt_max_len + config.generate_max_len
    for rope in _ropes(values):
        kind = rope.get("rope_type", rope.get("type"))
        original = rope.get("original_max_position_embeddings") or values.get("original_max_position_embeddings")
        original = original or values.get("max_position_embeddings")
        if kind in ("dynamic", "longrope") and isinstance(original, int) and longest > original:
            yield (
                f"prompt_max_len + generate_max_len = {config.prompt_max_len} + {config.generate_max_len} = {longest} tokens: beyond "
                f"{original}, the model's rotary scaling {kind!r} takes its frequencies from the longest sequence of a batch, and the "
                f"log-probs of the others would depend on it; lower them to {original} together"
            )
            return


def _ropes(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The scaling of all layers, or of each kind of layer."""
    found = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if isinstance(found, Mapping):
        yield found
        yield from (part for part in found.values() if isinstance(part, Mapping))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
