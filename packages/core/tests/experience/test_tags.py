"""Tags that are special tokens, which the text that rewards read does not have, are told; what is no tag is not."""

from __future__ import annotations

from lightrft.experience.tags import METRIC, TagWatch
from lightrft.testing.chat_styles import STYLES, style_tokenizer
from lightrft.testing.tiny import tiny_tokenizer
from lightrft.types import Sample


def test_completions_with_tags_are_counted_and_told() -> None:
    tokenizer = tiny_tokenizer("0123456789abc")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    watch = TagWatch(tokenizer, ends=[1])
    think = tokenizer.convert_tokens_to_ids("<think>")
    ids = [[think, 4, 1], [4, 5, 1], [0, 2, 4, 1], [4, think]]
    assert watch.has_tags and watch.count([Sample(prompt="p", completion="c", token_ids=one) for one in ids]) == 2
    assert watch.sentence({METRIC: 0.05}) is None
    sentence = watch.sentence({METRIC: 0.5}) or ""
    assert "50% of the completions hold special tokens ('<think>', '</think>')" in sentence and "sample.raw_completion" in sentence


def test_what_ends_or_pads_a_text_is_no_tag() -> None:
    assert not TagWatch(tiny_tokenizer("01"), ends=[1]).has_tags
    tokenizer = style_tokenizer(STYLES["gemma"])
    assert TagWatch(tokenizer, ends=[1, 4]).count([Sample(prompt="p", completion="c", token_ids=[9, 4])]) == 0
    assert TagWatch(tokenizer, ends=[1]).count([Sample(prompt="p", completion="c", token_ids=[9, 4, 9])]) == 1, "a turn that does not end"
