"""The model sees exactly the text and tokens that the settings say; a bad prompt is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightrft.data.prompts import PromptSet, load_prompts
from lightrft.errors import DataError

BOS, EOS = 1, 2
CHAT = (
    "{{ '<s>' }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


class CharTokenizer:
    """One token a character; `<s>` is BOS, which it adds, and EOS where `closes`."""

    eos_token, eos_token_id = "</s>", EOS

    def __init__(self, *, adds_bos: bool = False, closes: bool = False, chat_template: str | None = None) -> None:
        self.adds_bos, self.closes, self.chat_template = adds_bos, closes, chat_template

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [self._ids(text, add_special_tokens) for text in texts]}

    def _ids(self, text: str, special: bool) -> list[int]:
        body = [BOS if c == "\x01" else EOS if c == "\x02" else ord(c) for c in text.replace("<s>", "\x01").replace("</s>", "\x02")]
        return [BOS] * (special and self.adds_bos) + body + [EOS] * (special and self.closes)

    def apply_chat_template(self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        if messages[0]["role"] == "robot":
            raise ValueError("roles must\nalternate")
        return "<s>" + "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]" * add_generation_prompt


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(ord(c) for c in text)


def load(tmp_path: Path, rows: list[dict[str, Any]], **changed: Any) -> PromptSet:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "tokenizer": CharTokenizer(),
        "input_key": "prompt",
        "label_key": "answer",
        "prompt_template": "{prompt}",
        "apply_chat_template": False,
        "prompt_max_len": 100,
    }
    return load_prompts(changed.pop("path", str(path)), **(settings | changed))


def test_several_sources_lie_one_after_another(tmp_path: Path) -> None:
    for name, texts in (("easy", ["a", "b", "c" * 9]), ("hard", ["d", "e"])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": text, "answer": "1"}) + "\n" for text in texts))
    path = f"{tmp_path}/easy.jsonl,x={tmp_path}/hard.jsonl"
    found = load(tmp_path, [], path=path, prompt_max_len=5)
    assert [(p.text, p.source, p.index) for p in found.prompts] == [("a", "easy", 0), ("b", "easy", 1), ("d", "x", 0), ("e", "x", 1)]
    assert found.num_too_long == 1 and found.path == path.replace("x=", "")
    assert [p.text for p in load(tmp_path, [], path=path, prompt_max_len=5, limit=4).prompts] == ["a", "b", "d"]
    assert [p.text for p in load(tmp_path, [], path=path, prompt_max_len=5, limit=2).prompts] == ["a", "b"]
    assert [p.source for p in load(tmp_path, [], path=f"{tmp_path}/hard.jsonl").prompts] == ["", ""]
    with pytest.raises(DataError, match=r"easy.jsonl: all 3 prompts are longer than prompt_max_len=0"):
        load(tmp_path, [], path=path, prompt_max_len=0)
    with pytest.raises(DataError, match="no prompts are named"):
        load(tmp_path, [], path="")


def message(tmp_path: Path, rows: list[dict[str, Any]], **changed: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows, **changed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_plain_prompt(tmp_path: Path) -> None:
    found = load(tmp_path, [{"prompt": "1+1=", "answer": 2, "level": "easy"}, {"prompt": "x", "answer": None}])
    first, second = found.prompts
    assert (first.index, first.text, first.token_ids, first.answer) == (0, "1+1=", ids_of("1+1="), "2")
    assert first.row == {"prompt": "1+1=", "answer": 2, "level": "easy"}
    assert (second.index, second.answer) == (1, None)
    assert found.num_too_long == 0 and found.path == str(tmp_path / "d.jsonl")


def test_template_may_hold_braces_and_so_may_the_prompt(tmp_path: Path) -> None:
    found = load(tmp_path, [{"prompt": "{x} {0} %s", "answer": "1"}], prompt_template="Q {a}: {prompt}!")
    assert found.prompts[0].text == "Q {a}: {x} {0} %s!"


def test_no_label_key_needs_no_column(tmp_path: Path) -> None:
    assert load(tmp_path, [{"prompt": "x"}], label_key="").prompts[0].answer is None
    assert "no column 'answer'" in message(tmp_path, [{"prompt": "x"}])


def test_bos_is_added_once_and_a_closing_eos_is_taken_off(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(adds_bos=True, closes=True)
    assert load(tmp_path, [{"prompt": "ab", "answer": "1"}], tokenizer=tokenizer).prompts[0].token_ids == (BOS, *ids_of("ab"))
    # An EOS that the data itself ends with stays.
    assert load(tmp_path, [{"prompt": "a</s>", "answer": "1"}]).prompts[0].token_ids == (*ids_of("a"), EOS)


def test_chat_template_wraps_text_as_the_users_turn_with_one_bos(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(adds_bos=True, closes=True, chat_template=CHAT)
    rows = [{"prompt": "hi", "answer": "1"}]
    found = load(tmp_path, rows, tokenizer=tokenizer, apply_chat_template=True, prompt_template="say {prompt}").prompts[0]
    assert found.text == "<s>[user]say hi[assistant]"
    assert found.token_ids == (BOS, *ids_of("[user]say hi[assistant]"))


def test_chat_messages(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    tokenizer = CharTokenizer(chat_template=CHAT)
    found = load(tmp_path, [{"prompt": messages, "answer": "1"}], tokenizer=tokenizer, apply_chat_template=True)
    assert found.prompts[0].text == "<s>[system]S[user]U[assistant]"


def test_a_real_tokenizer_gives_the_same_as_its_own_chat_call(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", *map(chr, range(32, 127))])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = CHAT
    rows = [{"prompt": "Hi {you}", "answer": "1"}]
    chat = load(tmp_path, rows, tokenizer=tokenizer, apply_chat_template=True).prompts[0]
    assert chat.text == "<s>[user]Hi {you}[assistant]"
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "Hi {you}"}], add_generation_prompt=True, return_dict=False)
    assert list(chat.token_ids) == expected and expected.count(0) == 1
    plain = load(tmp_path, rows, tokenizer=tokenizer).prompts[0]
    assert plain.token_ids == (0, *(vocab[c] for c in "Hi {you}"))


def test_longer_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * n, "answer": "1"} for n in (5, 3, 4, 6)]
    found = load(tmp_path, rows, prompt_max_len=4)
    assert [p.index for p in found.prompts] == [1, 2] and found.num_too_long == 2


def test_limit_takes_the_first_rows_of_the_file(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * n, "answer": "1"} for n in (5, 3, 4)]
    found = load(tmp_path, rows, prompt_max_len=4, limit=2)
    assert [p.index for p in found.prompts] == [1] and found.num_too_long == 1
    assert len(load(tmp_path, rows, limit=9).prompts) == 3


def test_all_too_long_says_what_would_do(tmp_path: Path) -> None:
    text = message(tmp_path, [{"prompt": "x" * n, "answer": "1"} for n in (8, 7)], prompt_max_len=6)
    assert "all 2 prompts are longer than prompt_max_len=6; the shortest has 7 tokens: set --prompt_max_len 7 or more" in text


def test_bad_prompts_are_named_by_line(tmp_path: Path) -> None:
    good = {"prompt": "x", "answer": "1"}
    where = f"{tmp_path / 'd.jsonl'}:2: "
    assert message(tmp_path, [good, {"prompt": "", "answer": "1"}]) == f"{where}column 'prompt' is an empty prompt; remove the row"
    for value, shown in ((5, "5"), ([], "[]")):
        text = message(tmp_path, [good, {"prompt": value, "answer": "1"}])
        assert text == f"{where}column 'prompt' holds {shown}, expected text, a list of chat messages or a list of token ids"
    for row in ({"prompt": None, "answer": "1"}, {"answer": "1"}):
        assert message(tmp_path, [good, row]) == f"{where}no column 'prompt' (columns: answer)"
    for turn in ("hi", {"content": "x"}, {"role": None, "content": "x"}):
        text = message(tmp_path, [good, {"prompt": [turn], "answer": "1"}])
        assert text.startswith(f"{where}column 'prompt', message 0 is ") and "expected an object with 'role' and 'content'" in text
    for content in (None, 5, [{"type": "audio"}], [{"type": "text"}]):
        text = message(tmp_path, [good, {"prompt": [{"role": "user", "content": content}], "answer": "1"}])
        assert text.startswith(f"{where}column 'prompt', message 0 ")


def test_a_prompt_without_tokens_is_named(tmp_path: Path) -> None:
    class Deaf(CharTokenizer):
        def _ids(self, text: str, special: bool) -> list[int]:
            return super()._ids(text.strip(), special)

    assert ":1: the prompt '  ' has no tokens; remove the row" in message(tmp_path, [{"prompt": "  ", "answer": "1"}], tokenizer=Deaf())


def test_chat_settings_that_do_not_fit(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "U"}], "answer": "1"}]
    assert "need a chat template; set --apply_chat_template" in message(tmp_path, rows)
    assert "the tokenizer has no chat template" in message(tmp_path, rows, apply_chat_template=True)
    chat = {"tokenizer": CharTokenizer(chat_template=CHAT), "apply_chat_template": True}
    assert "prompt_template='Q {prompt}' does not apply" in message(tmp_path, rows, prompt_template="Q {prompt}", **chat)
    robot = [{"prompt": [{"role": "robot", "content": "U"}], "answer": "1"}]
    assert ":1: the tokenizer's chat template fails: ValueError: roles must alternate" in message(tmp_path, robot, **chat)


def test_data_and_rewards_import_no_torch() -> None:
    code = (
        "import sys, lightrft.data.prompts, lightrft.data.sampler, lightrft.rewards.load, lightrft.rewards.score, lightrft.rewards.math, "
        "lightrft.rewards.format, lightrft.rewards.exact_match, lightrft.experience.reward_signal\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow', 'math_verify', 'sympy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
