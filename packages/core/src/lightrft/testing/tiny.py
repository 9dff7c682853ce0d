"""The models and tokenizers of tests. Real architectures, made on the spot, small enough for one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Family = Literal["qwen3", "qwen2", "llama"]

HEAD_SIZE = 32
"""The smallest that every engine takes, vLLM on the CPU included."""

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
PAD_ID, EOS_ID = 0, 1
ALPHABET = "0123456789 =+-*/abcdefghijklmnopqrstuvwxyz.,?\n"

_FAMILIES: dict[str, tuple[type[Qwen3Config] | type[Qwen2Config] | type[LlamaConfig], type[PreTrainedModel]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def tiny_causal_lm(
    *,
    seed: int = 0,
    vocab_size: int = 64,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 2,
    kv_heads: int = 1,
    tie: bool = False,
    family: Family = "qwen3",
) -> PreTrainedModel:
    """A random causal model in float32 with heads of 32; pad is token 0, end of sequence token 1. Leaves the global random state as it was.

    Raises:
        ValueError: unknown family.
    """
    if family not in _FAMILIES:
        raise ValueError(f"family={family!r}; possible: {', '.join(_FAMILIES)}")
    config_class, model_class = _FAMILIES[family]
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=HEAD_SIZE,  # type: ignore[call-arg]  # Qwen2's configuration keeps it although it has no such field
        tie_word_embeddings=tie,
        max_position_embeddings=4096,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        architectures=[model_class.__name__],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config)
        return model


def tiny_lora(model: torch.nn.Module, *, rank: int = 4, seed: int = 7) -> Any:
    """Adapters on every linear layer of a model, with values that count: peft's own start at nothing, and one half without a gradient."""
    from lightrft.models.lora import add_lora

    adapted = add_lora(model, rank=rank, alpha=2.0 * rank, target_modules=["all-linear"], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapted


def tiny_tokenizer(alphabet: str = ALPHABET) -> PreTrainedTokenizerFast:
    """One token for each character: pad 0, end of sequence 1, unknown 2, then the alphabet in its order.

    Raises:
        ValueError: a character that occurs twice.
    """
    twice = sorted({c for c in alphabet if alphabet.count(c) > 1})
    if twice:
        raise ValueError(f"alphabet={alphabet!r} has characters twice: {', '.join(map(repr, twice))}")
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers does not annotate it
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def tiny_model_folder(
    path: Path,
    *,
    alphabet: str = ALPHABET,
    seed: int = 0,
    vocab_size: int = 64,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 2,
    kv_heads: int = 1,
    tie: bool = False,
    family: Family = "qwen3",
) -> Path:
    """A HF folder with that model and tokenizer; returns `path`.

    transformers' AutoTokenizer reads the tokenizer of any qwen2 folder as Qwen2's own; where text matters, take another family.

    Raises:
        ValueError: the alphabet needs more than `vocab_size` tokens.
    """
    tokenizer = tiny_tokenizer(alphabet)
    if len(tokenizer) > vocab_size:
        raise ValueError(f"the alphabet needs {len(tokenizer)} tokens, vocab_size={vocab_size}")
    model = tiny_causal_lm(
        seed=seed, vocab_size=vocab_size, layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, tie=tie, family=family
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_reward_folder(path: Path, *, alphabet: str = ALPHABET, seed: int = 0, num_labels: int = 1, chat_template: str = "") -> Path:
    """A HF folder with a random sequence classifier (Llama) and the tokenizer of that alphabet; returns `path`."""
    config = tiny_causal_lm(family="llama").config
    config.num_labels = num_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = LlamaForSequenceClassification(config)  # type: ignore[no-untyped-call]  # transformers does not annotate it
    model.save_pretrained(path)
    tokenizer = tiny_tokenizer(alphabet)
    if chat_template:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(path)
    return path
