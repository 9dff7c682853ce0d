"""Rows for tests of packing and sequence groups: sequences of ragged lengths, one row of them, and what is to come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from lightrft.distributed.mesh import Axis
from lightrft.distributed.sequence import gather, padded_offsets, shard
from lightrft.models.attention import Segments, packed_forward

tf: Any = transformers  # its classes take their fields as keywords, unseen by type checkers

VOCAB = 64
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
WINDOW = 4
CAPPED = SMALL | {"sliding_window": WINDOW, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}

FAMILIES: dict[str, Any] = {
    "qwen3": lambda **more: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SMALL | more)),
    "llama": lambda **more: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL | more)),
    "gemma2": lambda **more: tf.Gemma2ForCausalLM(tf.Gemma2Config(**CAPPED | more)),
    "tied": lambda **more: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL | {"tie_word_embeddings": True} | more)),
    "sinks": lambda **more: tf.GptOssForCausalLM(
        tf.GptOssConfig(**SMALL | {"sliding_window": WINDOW, "num_local_experts": 2, "num_experts_per_tok": 1} | more)
    ),
}
"""Among them soft caps and windows (Gemma 2), a tied head, attention sinks (GPT-OSS)."""

LENGTHS = (9, 1, 13, 6)


def family(name: str, **config: Any) -> Any:
    """A random model in float32 and eval mode, the same at every call, with scores large enough that caps and sinks count."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[name](**config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def reference(name: str, **config: Any) -> Any:
    """The same with transformers' own attention: sdpa, or eager where a soft cap is asked for, which its sdpa drops."""
    model = family(name, **config)
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


def sequences(lengths: Sequence[int] = LENGTHS, *, seed: int = 3) -> list[torch.Tensor]:
    """Token ids [n] of each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator) for n in lengths]


def logprobs_alone(model: Any, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """[S] log-probability of the next token of its sequence, 0 at each last one: one sequence at a time."""
    return torch.cat([_of_labels(model(input_ids=ids[None], use_cache=False).logits[0], labels_of([ids])) for ids in rows])


def logprobs_packed(model: Any, rows: Sequence[torch.Tensor], axis: Axis | None = None, **inputs: Any) -> torch.Tensor:
    """The same from one packed row, shared by the ranks of `axis`, where there is one (collective)."""
    ids, labels = torch.cat(list(rows))[None], labels_of(rows)
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).to(torch.int32)
    length = ids.shape[1]
    if axis is not None:
        ids, positions, labels, offsets = shard(ids, axis), shard(positions, axis), shard(labels, axis), padded_offsets(offsets, axis)
    row = Segments(offsets=offsets, longest=int(offsets.diff().max()), axis=axis)
    with packed_forward():
        logits = model(**{"input_ids": ids, "position_ids": positions} | row.inputs() | inputs).logits[0]
    found = _of_labels(logits, labels)
    return found if axis is None else gather(found, length, axis)


def labels_of(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """[S]: the next token of its sequence, -1 at each last one."""
    return torch.cat([torch.cat([ids[1:], ids.new_tensor([-1])]) for ids in rows])


def _of_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    found = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None]).squeeze(-1)
    return torch.where(labels >= 0, found, torch.zeros_like(found))
