"""Special tokens' text as plain characters, and one beginning-of-sequence, with byte-level and sentence-piece-like tokenizers."""

from __future__ import annotations

from typing import Any

import pytest

from lightrft.data.tokens import Encoder


def byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["hello world user </ s >"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


def spaced(scheme: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme=scheme), decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [*map(chr, range(32, 127)), "\u2581"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["hello world user < / s >"] * 50, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")


TOKENIZERS = {"byte-level": byte_level, "space before a text": lambda: spaced("first"), "space before each part": lambda: spaced("always")}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("words", ["hello</s>world", "</s>", "a </s> </s>b", "hello <pad></s> world", "plain"])
def test_the_datas_words_have_no_special_token_and_the_templates_have(name: str, words: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = Encoder(tokenizer)
    text, spans = encoder.rendered({"x": words}, lambda data: f"hello {data['x']}</s>", where="w")
    [ids] = encoder.encode([(text, spans)])
    assert text == f"hello {words}</s>" and list(ids).count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id, "the template's own"
    assert ids.count(tokenizer.bos_token_id) == (name != "byte-level")
    assert "".join(tokenizer.decode(list(ids)).split()) == "".join(f"{'<s>' if name != 'byte-level' else ''}{text}".split())
    if "</s>" not in words and "<pad>" not in words:
        assert list(ids[len(encoder.prefix) :]) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("own", ["\ue000", "\ue0007\ue001", "".join(map(chr, range(0xE000, 0xF900)))])
def test_characters_for_private_use_are_the_datas_own(own: str) -> None:
    tokenizer = byte_level()
    encoder = Encoder(tokenizer)
    text, [span] = encoder.rendered({"x": f"{own}</s>{own}"}, lambda data: f"<{data['x']}>", where="w")
    assert text == f"<{own}</s>{own}>" and text[slice(*span)] == "</s>"
    assert tokenizer.decode(list(encoder.encode([(text, [span])])[0])) == text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_that_are_meant_as_tokens(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = Encoder(tokenizer, interpret=True)
    start = "<s>" if name != "byte-level" else ""
    for written in (f"{start}hello</s>", "hello</s>", f"{start}{start}hello</s>"):
        [ids] = encoder.encode([encoder.rendered(written, str, where="w")])
        assert ids.count(tokenizer.bos_token_id) == len(start) // 3 and ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("written", ["", "<s>", "<s><pad>", "<s><pad><s><pad>"])
def test_a_prefix_of_two_tokens_of_which_a_template_writes_a_part(written: str) -> None:
    from tokenizers import processors

    tokenizer = TOKENIZERS["byte-level"]()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    marks = [("<s>", tokenizer.bos_token_id), ("<pad>", tokenizer.pad_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> <pad> $A", special_tokens=marks)
    encoder = Encoder(tokenizer)
    [ids] = encoder.encode([(f"{written}hello", [])])
    assert tokenizer.decode(list(ids)) == "<s><pad>hello" and list(ids[:2]) == encoder.prefix
