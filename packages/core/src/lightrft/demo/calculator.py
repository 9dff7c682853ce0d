"""The demo's task with a tool: the product of two numbers, which a tiny model cannot work out and a function that it may call can.

A tokenizer with a chat template and a tiny model, made from a seed.
"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Any

from lightrft.demo.rows import MODEL_FOLDER, write_rows
from lightrft.rollout.tool_calls import ToolCalls

FACTORS, GUESSES = range(32, 100), range(1000, 2000)
"""Of two digits, with products of four; what a guess is drawn from."""

FRACTION_OF_CALLS = 0.4
"""Of what the warm-up imitates; the rest are guesses."""

TURNS = ("<|user|>", "<|assistant|>", "<|tool|>", "<|tools|>")
MARKS = ("<tool_call>", "</tool_call>")
CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}"
    "<|tools|>{{ tool.function.name }}({{ tool.function.parameters.properties | join(', ') }})<|end|>{% endfor %}"
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content or '' }}"
    "{% for call in turn.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Each turn between its role and the end token; calls as Hermes and Qwen write them, and tools by name."""


def multiply(a: int, b: int) -> int:
    """Multiplies two whole numbers.

    Args:
        a: one of them
        b: the other
    """
    return a * b


class Calculator(ToolCalls):
    """An episode of the task: the model may call `multiply`."""

    functions = (multiply,)


def write_products(folder: Path, *, seed: int, num_train: int = 4096, num_eval: int = 128) -> tuple[Path, Path]:
    """Writes `train.jsonl` and `eval.jsonl` (prompt, answer; `form`, a whole episode to imitate) and the model that learns from them as
    `model`; returns the two paths. No question is in both, none is there twice.
    """
    source = random.Random(seed)
    pairs = source.sample(list(product(FACTORS, repeat=2)), num_train + num_eval)
    rows = [make_row(a, b, source) for a, b in pairs]
    _save_model(folder / MODEL_FOLDER, seed=seed)
    return write_rows(folder, rows[:num_train], rows[num_train:])


def make_row(a: int, b: int, source: random.Random) -> dict[str, str]:
    """One question. Its `form` is the call, what it answers, and the answer as the template writes them; mostly a guess instead."""
    answer = str(multiply(a, b))
    call = f'{MARKS[0]}{{"name": "multiply", "arguments": {{"a": {a}, "b": {b}}}}}{MARKS[1]}'
    called = f"{call}<|end|><|tool|>{answer}<|end|><|assistant|>{answer}"
    guessed = str(source.choice(GUESSES))
    return {"prompt": f"{a} * {b}", "answer": answer, "form": called if source.random() < FRACTION_OF_CALLS else guessed}


def _save_model(folder: Path, *, seed: int) -> None:
    from lightrft.engine.quiet import no_progress_bars  # transformers, which the command line has no need of for another task
    from lightrft.models.scratch import scratch_model

    tokenizer = tokenizer_with_tools()
    with no_progress_bars():
        scratch_model(tokenizer, layers=2, hidden=128, heads=4, kv_heads=4, seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def tokenizer_with_tools() -> Any:
    """Byte-level BPE of the words of a call, every digit a token of its own, with tokens for whose turn it is and the template above."""
    from lightrft.models.scratch import BYTE_ALPHABET_SIZE, bpe_tokenizer

    words = ['{"name": "multiply", "arguments": {"a": 1, "b": 2}}', "multiply(a, b)", "1 * 2"]
    tokenizer = bpe_tokenizer(words, vocab_size=2 * BYTE_ALPHABET_SIZE)
    tokenizer.add_special_tokens({"additional_special_tokens": list(TURNS)})
    tokenizer.add_tokens(list(MARKS))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
