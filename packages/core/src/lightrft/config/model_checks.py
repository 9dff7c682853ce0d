"""Checks that the model fits the engine and the lengths. What its config.json says is enough: no weight is read, no torch is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightrft.config.schema import Config
from lightrft.plugins.specs import EngineSpec


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """None: the configuration does not say, or not under a name that is known here."""

    heads: int | None
    kv_heads: int | None
    head_size: int | None
    latent_size: int | None = None
    """Of attention that keeps a latent in place of keys and values: its heads are then no size that an engine's kernel sees."""

    context: int | None
    vocabulary: int | None = None


def engine_fit(config: Config, spec: EngineSpec, *, device_type: str | None, model_path: str | None = None) -> Iterator[str]:
    """What engine `spec` cannot do with the model (default: the configuration's); `device_type` None where it is not known yet."""
    shape = model_shape(config, model_path)
    if shape is None:
        return
    yield from _stops(config, shape)
    if spec.cuts_heads:
        yield from _divides(config.engine_tp_size, shape, spec.name)
    if device_type == "cpu":
        yield from _sizes(shape, spec)
    name = "eval_max_len" if config.eval_max_len > config.generate_max_len else "generate_max_len"
    longest = config.prompt_max_len + getattr(config, name)
    if shape.context is not None and longest > shape.context:
        yield (
            f"prompt_max_len + {name} = {config.prompt_max_len} + {getattr(config, name)} = {longest} tokens is more than the "
            f"model's context of {shape.context} (max_position_embeddings); lower one of them"
        )


def model_shape(config: Config, model_path: str | None = None) -> ModelShape | None:
    """Of the scratch model, or of a folder; None where there is nothing to read here (a hub name)."""
    if config.scratch_tokenizer != "none" and model_path is None:
        return ModelShape(
            heads=config.scratch_heads,
            kv_heads=config.scratch_kv_heads,
            head_size=config.scratch_hidden // config.scratch_heads,
            context=None,
        )
    values = model_values(config, model_path)
    return None if values is None else _shape_of(values)


def model_values(config: Config, model_path: str | None = None) -> dict[str, Any] | None:
    """The config.json of a folder, what it says of the text model on top; None where there is nothing to read here."""
    if config.scratch_tokenizer != "none" and model_path is None:
        return None
    file = Path(model_path or config.model_name_or_path) / "config.json"
    if not file.is_file():  # a pipe would be waited for
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # told by those who need the folder
        return None
    if not isinstance(found, dict):
        return None
    text = found.get("text_config")
    return found | text if isinstance(text, dict) else found


def _shape_of(values: dict[str, Any]) -> ModelShape:
    number = partial(_number, values)
    heads = number("num_attention_heads", "n_head", "n_heads")
    hidden = number("hidden_size", "n_embd", "d_model")
    size = number("head_dim")
    latent, rotary = number("kv_lora_rank"), number("qk_rope_head_dim")
    common = {"context": _context(values), "vocabulary": number("vocab_size")}
    if latent and rotary:  # head_dim is that of the rotary part alone
        return ModelShape(heads=heads, kv_heads=heads, head_size=None, latent_size=latent + rotary, **common)
    return ModelShape(
        heads=heads,
        kv_heads=number("num_key_value_heads") or heads,
        head_size=size if size is not None or not heads or not hidden else hidden // heads,
        **common,
    )


def _number(values: dict[str, Any], *names: str) -> int | None:
    return next((values[name] for name in names if isinstance(values.get(name), int)), None)


def _context(values: dict[str, Any]) -> int | None:
    return None if _stretched(values) else _number(values, "max_position_embeddings", "n_positions")


def _stops(config: Config, shape: ModelShape) -> Iterator[str]:
    """Stop tokens that never come, since the model has no such token."""
    if shape.vocabulary is None:
        return
    beyond = [token for token in config.stop_token_ids if token >= shape.vocabulary]
    if beyond:
        yield (
            f"stop_token_ids={config.stop_token_ids}: {', '.join(map(str, beyond))} is beyond the model's vocabulary of {shape.vocabulary} "
            f"tokens (vocab_size), possible: 0 to {shape.vocabulary - 1}; such a token never comes, leave it out"
        )


def _sizes(shape: ModelShape, spec: EngineSpec) -> Iterator[str]:
    """What its kernels on the CPU have no size for."""
    for what, size, sizes in (
        ("attention heads", shape.head_size, spec.cpu_head_sizes),
        ("latent attention (kv_lora_rank + qk_rope_head_dim)", shape.latent_size, spec.cpu_latent_sizes),
    ):
        if size is not None and sizes and size not in sizes:
            possible = ", ".join(map(str, sorted(sizes)))
            yield (
                f"engine_type={spec.name!r} on the CPU cannot do the model's {what} of size {size}; possible: {possible}; use another "
                "model, or --engine_type hf"
            )


def _stretched(values: dict[str, Any]) -> bool:
    """Whether rotary scaling makes the context longer than max_position_embeddings says."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else "default"
    return kind not in ("default", None)


def _divides(ranks: int, shape: ModelShape, engine: str) -> Iterator[str]:
    if shape.heads is None or shape.kv_heads is None:
        return
    if shape.heads % ranks:
        possible = ", ".join(str(n) for n in range(1, shape.heads + 1) if shape.heads % n == 0 and _fits(n, shape.kv_heads))
        what = f"does not divide the model's {shape.heads} attention heads, which engine {engine!r} shards"
        yield f"engine_tp_size={ranks} {what}; possible: {possible}"
    elif not _fits(ranks, shape.kv_heads):
        what = f"and the model's {shape.kv_heads} key-value heads do not divide one another, which engine {engine!r} needs"
        yield f"engine_tp_size={ranks} {what}"


def _fits(ranks: int, kv_heads: int) -> bool:
    return kv_heads % ranks == 0 or ranks % kv_heads == 0
