"""A tokenizer and a small random model, made on the spot from nothing but texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lightrft.errors import ModelError

PAD, EOS = "<|pad|>", "<|end|>"
MAX_POSITIONS = 4096
MLP_RATIO = 3
BYTE_ALPHABET_SIZE = 256


def char_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token for each character that occurs, in sorted order after pad (0) and end (1). Decoding gives a text back exactly.

    A character that does not occur in `texts` cannot be encoded.

    Raises:
        ModelError: no text, or one that holds a special token.
    """
    _check_texts(texts)
    characters = sorted(set().union(*texts))
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer)


def bpe_tokenizer(texts: Sequence[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the texts, every digit a token of its own; any text can be encoded, and decodes exactly.

    The vocabulary has at most `vocab_size` tokens, pad (0) and end (1) included; fewer where the texts have no more pairs to merge.

    Raises:
        ModelError: no text, one that holds a special token, or a vocabulary too small for the 256 bytes.
    """
    _check_texts(texts)
    if vocab_size < BYTE_ALPHABET_SIZE + 2:
        raise ModelError(f"vocab_size={vocab_size} is too small for byte-level BPE; use at least {BYTE_ALPHABET_SIZE + 2}")
    tokenizer = Tokenizer(models.BPE())
    single_digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([single_digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def scratch_model(
    tokenizer: PreTrainedTokenizerBase, *, layers: int, hidden: int, heads: int, kv_heads: int, seed: int
) -> Qwen3ForCausalLM:
    """A random Qwen3 decoder in float32 for this tokenizer, the same for the same seed; the global random state stays as it was.

    Heads have `hidden / heads` dimensions, the MLP is 3 x hidden wide, input and output embeddings are tied.

    Raises:
        ValueError: `hidden` is not a multiple of 2 x `heads`, or `kv_heads` does not divide `heads`.
    """
    config = scratch_config(tokenizer, layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make_model: Any = Qwen3ForCausalLM  # its constructor carries no annotations
        return cast("Qwen3ForCausalLM", make_model(config).float())


def scratch_config(tokenizer: PreTrainedTokenizerBase, *, layers: int, hidden: int, heads: int, kv_heads: int) -> Qwen3Config:
    """The shape of `scratch_model`. Raises ValueError as that."""
    if hidden % (2 * heads) or heads % kv_heads:
        raise ValueError(f"hidden={hidden}, heads={heads}, kv_heads={kv_heads}: hidden must be a multiple of 2 x heads, heads of kv_heads")
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=MLP_RATIO * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        use_cache=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype=torch.float32,
    )


def _check_texts(texts: Sequence[str]) -> None:
    if not any(texts):
        raise ModelError("a scratch tokenizer needs texts to be made from, found none; check prompt_data, input_key and label_key")
    for index, text in enumerate(texts):
        for token in (PAD, EOS):
            if token in text:
                raise ModelError(f"text {index} holds {token!r}, a special token of the scratch tokenizer; take it out of the data")


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    # Without clean-up, decoding keeps the spaces before punctuation: the text comes back exactly.
    make_tokenizer: Any = PreTrainedTokenizerFast  # nor does this one
    made = make_tokenizer(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False, model_max_length=MAX_POSITIONS
    )
    return cast("PreTrainedTokenizerFast", made)
