"""Chat templates and tokenizers in the styles that users bring, written by hand, one token for each character; and tiny models for them.

Each style shows the marks of its family: who writes the beginning-of-sequence, which token ends a turn, whether added tokens are flagged
special, what becomes of system turns, tools, thinking and spaces.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lightrft.testing.tiny import tiny_causal_lm

CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
UNKNOWN = "<unk>"


@dataclass(frozen=True, kw_only=True)
class ChatStyle:
    """`special` and `plain` are added tokens, flagged special and not. `generation_eos` is what generation_config.json names."""

    name: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    bos: str | None = None
    eos: str
    pad: str
    adds_bos: bool = False
    generation_eos: tuple[str, ...]
    template: str


LLAMA3 = ChatStyle(
    name="llama3",
    special=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad="<|end_of_text|>",
    adds_bos=True,
    generation_eos=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    template=(
        "{{- bos_token }}"
        "{%- if messages[0]['role'] == 'system' %}{% set rules = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
        "{%- else %}{% set rules = '' %}{% endif %}"
        "{%- if rules or tools %}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
        "{%- if tools %}{{- 'Functions:\\n' }}{% for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{% endfor %}{% endif %}"
        "{{- rules + '<|eot_id|>' }}{% endif %}"
        "{%- for message in messages %}"
        "{%- if message['role'] == 'assistant' and 'tool_calls' in message %}"
        "{%- set call = message['tool_calls'][0]['function'] %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
        "{{- '{\"name\": \"' + call['name'] + '\", \"parameters\": ' }}{{- call['arguments'] | tojson }}{{- '}<|eot_id|>' }}"
        "{%- elif message['role'] == 'tool' %}"
        "{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
        "{%- else %}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
        "{%- endif %}{% endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
)

CHATML = ChatStyle(
    name="chatml",
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
    generation_eos=("<|im_end|>", "<|endoftext|>"),
    template=(
        "{%- if tools %}{{- '<|im_start|>system\\n' }}"
        "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}"
        "{{- '# Tools\\n' }}{% for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{% endfor %}{{- '<|im_end|>\\n' }}"
        "{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}"
        "{%- for message in messages %}"
        "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}"
        "{%- if loop.last %}{{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and not enable_thinking else '' }}{% endif %}"
        "{%- if message.content %}{{- message.content }}{% endif %}"
        "{%- for call in message.tool_calls or [] %}"
        '{{- \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}{{- call.function.arguments | tojson }}'
        "{{- '}\\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\\n' }}"
        "{%- elif message.role == 'tool' %}{{- '<|im_start|>user\\n[' + message.content + ']<|im_end|>\\n' }}"
        "{%- endif %}{% endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
    ),
)

GEMMA = ChatStyle(
    name="gemma",
    special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
    eos="<eos>",
    pad="<pad>",
    adds_bos=True,
    generation_eos=("<eos>", "<end_of_turn>"),
    template=(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
)

MISTRAL = ChatStyle(
    name="mistral",
    special=("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    bos="<s>",
    eos="</s>",
    pad="</s>",
    adds_bos=True,
    generation_eos=("</s>",),
    template=(
        "{%- if messages[0].role == 'system' %}{% set rules = messages[0].content + '\\n\\n' %}{% set messages = messages[1:] %}"
        "{%- else %}{% set rules = '' %}{% endif %}{{- bos_token }}"
        "{%- for message in messages %}"
        "{%- if message.role == 'user' %}"
        "{%- if loop.last and tools %}{{- '[AVAILABLE_TOOLS]' }}{{- tools | tojson }}{{- '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{{- '[INST]' + (rules if loop.last else '') + message.content + '[/INST]' }}"
        "{%- elif message.tool_calls is defined and message.tool_calls is not none %}"
        "{{- '[TOOL_CALLS]' }}{{- message.tool_calls[0].function | tojson }}{{- eos_token }}"
        "{%- elif message.role == 'assistant' %}{{- message.content + eos_token }}"
        "{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content }}"
        "{%- endif %}{% endfor %}"
    ),
)

DEEPSEEK = ChatStyle(
    name="deepseek",
    special=("<|begin|>", "<|end|>"),
    plain=("<|User|>", "<|Assistant|>", "<|calls|>", "<|outputs|>", "<think>", "</think>"),
    bos="<|begin|>",
    eos="<|end|>",
    pad="<|end|>",
    adds_bos=True,
    generation_eos=("<|end|>",),
    template=(
        "{% set ns = namespace(rules='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{% set ns.rules = ns.rules + message['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.rules }}"
        "{% if tools %}{{ '\\n## Tools\\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}{% endif %}"
        "{% if message['role'] == 'assistant' and message['content'] is none %}"
        "{{ '<|Assistant|><|calls|>' + message['tool_calls'][0]['function']['name'] + '\\n' }}"
        "{{ message['tool_calls'][0]['function']['arguments'] + '<|end|>' }}{% endif %}"
        "{% if message['role'] == 'assistant' and message['content'] is not none %}"
        "{{ '<|Assistant|>' + message['content'].split('</think>')[-1] + '<|end|>' }}{% endif %}"
        "{% if message['role'] == 'tool' %}{{ '<|outputs|>' + message['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
    ),
)

PHI = ChatStyle(
    name="phi",
    special=("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    bos="<s>",
    eos="<|endoftext|>",
    pad="<|endoftext|>",
    adds_bos=True,
    generation_eos=("<|endoftext|>", "<|assistant|>", "<|end|>"),
    template=(  # it writes no beginning-of-sequence, which its tokenizer puts before every text
        "{% for message in messages %}"
        "{% if message['role'] == 'system' and tools %}{{ '<|system|>' + message['content'] + tools | tojson + '<|end|>' }}"
        "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
)

STYLES = {style.name: style for style in (LLAMA3, CHATML, GEMMA, MISTRAL, DEEPSEEK, PHI)}


def style_tokenizer(style: ChatStyle, *, characters: str = CHARACTERS) -> PreTrainedTokenizerFast:
    """The tokenizer of a style: its added tokens first, then the unknown token, then one token for each character."""
    vocabulary = {token: index for index, token in enumerate([*style.special, *style.plain, UNKNOWN, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in style.special])
    backend.add_tokens([AddedToken(token, special=False) for token in style.plain])
    if style.adds_bos and style.bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{style.bos} $A", pair=f"{style.bos} $A $B", special_tokens=[(style.bos, vocabulary[style.bos])]
        )
    named = {"eos_token": style.eos, "pad_token": style.pad} | ({"bos_token": style.bos} if style.bos else {})
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers does not annotate it
        tokenizer_object=backend, unk_token=UNKNOWN, clean_up_tokenization_spaces=False, **named
    )
    tokenizer.chat_template = style.template
    return tokenizer


def style_folder(path: Path, style: ChatStyle, *, seed: int = 0, more: dict[str, Any] | None = None) -> Path:
    """A HF folder of a tiny random Llama with the tokenizer and the end-of-sequence tokens of a style; returns `path`.

    `more` goes into generation_config.json.
    """
    tokenizer = style_tokenizer(style)
    vocabulary = tokenizer.get_vocab()
    ends = [vocabulary[token] for token in style.generation_eos]
    model = tiny_causal_lm(family="llama", vocab_size=len(tokenizer), seed=seed)
    model.config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends} | (more or {})), encoding="utf-8")
    return path
