"""Every row of `prompt_cases` becomes the text and the tokens that it should, from `.jsonl`, `.parquet` and `datasets` alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lightrft.data.chat import ChatSettings
from lightrft.data.prompts import PromptSet, load_prompts
from lightrft.errors import DataError
from lightrft.testing.chat_styles import STYLES, style_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from prompt_cases import CASES, Case

FORMATS = ("jsonl", "parquet", "datasets")
OF_CHAT = {"system_prompt": "system_prompt", "tools_key": "tools_key", "chat_template_kwargs": "kwargs"}


def written(rows: list[dict[str, Any]], folder: Path, kind: str) -> str:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.Table.from_pylist(rows[::-1]).schema), path)
    else:
        datasets = pytest.importorskip("datasets", reason="the extra lightrft[datasets] is not installed")
        datasets.Dataset(pyarrow.Table.from_pylist(rows, schema=pyarrow.Table.from_pylist(rows[::-1]).schema)).save_to_disk(str(path))
    return str(path)


def load(path: str, case: Case) -> PromptSet:
    tokenizer = style_tokenizer(STYLES[case.style])
    given: dict[str, Any] = {"apply_chat_template": True, "prompt_template": "{prompt}", "input_key": "prompt", "label_key": "answer"}
    given |= {name: value for name, value in case.settings.items() if name not in OF_CHAT}
    chat = ChatSettings(**{OF_CHAT[name]: value for name, value in case.settings.items() if name in OF_CHAT})
    return load_prompts(path, tokenizer=tokenizer, prompt_max_len=1000, chat=chat, vocab_size=len(tokenizer), **given)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row(case: Case, kind: str, tmp_path: Path) -> None:
    labelled = [{"answer": "1", **row} if "reward_model" not in row else row for row in [case.row, case.beside] if row]
    path = written(labelled, tmp_path, kind)
    if case.error:
        with pytest.raises(DataError) as caught:
            load(path, case)
        assert case.error in str(caught.value) and "\n" not in str(caught.value)
        return
    found = load(path, case)
    prompt = found.prompts[0]
    tokenizer = style_tokenizer(STYLES[case.style])
    added = {**{token.content: i for i, token in tokenizer.added_tokens_decoder.items()}}
    assert prompt.text == case.text
    assert [tokenizer.decode([i]) for i in prompt.token_ids if i in added.values()] == case.tokens
    begun = tokenizer.decode(list(prompt.token_ids))
    assert begun == case.text or begun == f"{tokenizer.bos_token}{case.text}"
    assert tuple(name for name, _ in found.findings) == case.tells
    assert prompt.answers == case.answers and prompt.answer == (case.answers[0] if case.answers else None)


@pytest.mark.parametrize("style", STYLES)
def test_a_conversation_is_what_the_tokenizer_itself_makes_of_it(style: str, tmp_path: Path) -> None:
    tokenizer = style_tokenizer(STYLES[style])
    turns = [{"role": "user", "content": "Hi {you}"}, {"role": "assistant", "content": "1"}, {"role": "user", "content": "so?"}]
    path = written([{"prompt": turns, "answer": "1"}], tmp_path, "jsonl")
    [prompt] = load(path, Case(name=style, style=style, row={})).prompts
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) in (expected, [tokenizer.bos_token_id, *expected])
    assert prompt.token_ids.count(tokenizer.bos_token_id) == (1 if STYLES[style].adds_bos else 0)


def test_a_row_is_one_thing_in_every_format(tmp_path: Path) -> None:
    from lightrft.data.rows import load_rows

    rows = [
        {"prompt": [{"role": "user", "content": "a"}], "meta": {"level": 1, "tags": ["x"]}, "answer": "1"},
        {"prompt": [{"role": "user", "content": "b", "name": "bob"}], "meta": {"source": "web"}, "extra": 3, "answer": None},
    ]
    found = [load_rows(written([*rows], tmp_path, kind), required=["prompt"]) for kind in FORMATS[:1]]
    full = pyarrow.schema(
        [
            ("prompt", pyarrow.list_(pyarrow.struct([("role", "string"), ("content", "string"), ("name", "string")]))),
            ("meta", pyarrow.struct([("level", "int64"), ("tags", pyarrow.list_(pyarrow.string())), ("source", "string")])),
            ("answer", "string"),
            ("extra", "int64"),
        ]
    )
    table = pyarrow.Table.from_pylist(rows, schema=full)
    pyarrow.parquet.write_table(table, tmp_path / "all.parquet")
    found.append(load_rows(str(tmp_path / "all.parquet"), required=["prompt"]))
    datasets = pytest.importorskip("datasets", reason="the extra lightrft[datasets] is not installed")
    datasets.Dataset(table).save_to_disk(str(tmp_path / "all"))
    found.append(load_rows(str(tmp_path / "all"), required=["prompt"]))
    assert found[0] == found[1] == found[2]
    assert found[0][0] == {"prompt": rows[0]["prompt"], "meta": rows[0]["meta"], "answer": "1", "extra": None}
    assert found[0][1]["meta"] == {"source": "web"} and found[0][1]["prompt"] == rows[1]["prompt"]


@pytest.mark.parametrize(
    ("escape", "column"),
    [('{"prompt": "hi \\ud83d", "answer": "x"}', "prompt"), ('{"prompt": "a", "answer": {"b": ["\\udc00"]}}', "answer")],
)
def test_half_a_surrogate_pair_is_named_by_row_and_column(escape: str, column: str, tmp_path: Path) -> None:
    from lightrft.data.rows import load_rows

    path = tmp_path / "s.jsonl"
    path.write_text('{"prompt": "whole \\ud83d\\ude00", "answer": "y"}\n' + escape + "\n")
    with pytest.raises(DataError, match=rf"s.jsonl:2: column '{column}' holds half of a surrogate pair, .*u(d83d|dc00) at character"):
        load_rows(str(path), required=["prompt"])


@pytest.mark.parametrize("special", [True, False])
def test_a_token_beyond_the_embedding_is_told_with_its_row(special: bool, tmp_path: Path) -> None:
    tokenizer = style_tokenizer(STYLES["chatml"])
    rows = len(tokenizer)
    tokenizer.add_tokens(["<|new|>"], special_tokens=special)
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b <|new|>", "answer": "1"}\n')
    given = {
        "input_key": "prompt",
        "label_key": "answer",
        "prompt_template": "{prompt}",
        "prompt_max_len": 100,
        "apply_chat_template": True,
    }
    with pytest.raises(
        DataError, match=rf"d.jsonl:2: the prompt has token {rows} \('<\|new\|>'\), and the model's embedding has {rows} rows"
    ):
        load_prompts(str(path), tokenizer=tokenizer, vocab_size=rows, **given)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "1", "answer": "2", "prompt": "3"}', "not JSON: 'prompt' stands twice in one object; found"),
        ('{"prompt": "1", "answer": {"a": 1, "b": 2, "a": 3}}', "not JSON: 'a' stands twice in one object; found"),
        ('{"prompt": "1", "answer": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        ('{"prompt": "1", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON: nested too deeply"),
    ],
)
def test_a_line_that_json_would_read_otherwise_or_not_at_all(line: str, words: str, tmp_path: Path) -> None:
    from lightrft.data.rows import load_rows

    (tmp_path / "d.jsonl").write_text('{"prompt": "0", "answer": "1"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        load_rows(str(tmp_path / "d.jsonl"), required=["prompt"])
    assert f"d.jsonl:2: {words}" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PLAIN = "{% for m in messages %}{{ '[INST]' + m.content + '[/INST]' if m.role == 'user' else ' ' + m.content }}{% endfor %}"
AS_JSON = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | tojson }}<|im_end|>\n{% endfor %}"
BEGINS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DATED = "{% if not day is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}<|im_start|>system\n{{ day }}<|im_end|>\n"


def told(template: str, tmp_path: Path, **settings: Any) -> tuple[list[str], str]:
    """The names of what is told of a chat template, and the notes."""
    tokenizer = style_tokenizer(STYLES["chatml"])
    tokenizer.chat_template = template
    path = written([{"prompt": 'say "hi"', "answer": "1"}], tmp_path, "jsonl")
    given = {"input_key": "prompt", "label_key": "answer", "prompt_template": "{prompt}", "prompt_max_len": 200}
    found = load_prompts(path, tokenizer=tokenizer, apply_chat_template=True, chat=ChatSettings(**settings), **given)
    return [name for name, _ in found.findings], " ".join(found.notes)


@pytest.mark.parametrize(
    ("template", "odd"),
    [
        (TURNS + BEGINS, False),
        (TURNS, True),
        (TURNS + "<|im_start|>assistant\n", False),
        (TURNS + BEGINS.replace("assistant", "bot"), True),
        (TURNS + BEGINS.replace("assistant\n", "assistant\n<think>\n"), False),
        (PLAIN, False),
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}", True),
        (TURNS.replace("{{ m.content }}", "{{ '<final>' if m.role == 'assistant' }}{{ m.content }}") + BEGINS, False),
        (AS_JSON + BEGINS, False),
    ],
    ids=["begun", "never begun", "always begun", "another role", "thinking", "no head at all", "a head alone", "a channel", "as JSON"],
)
def test_prompts_that_do_not_begin_the_assistants_turn_are_told(template: str, odd: bool, tmp_path: Path) -> None:
    assert told(template, tmp_path)[0] == ["assistant_turn"] * odd


@pytest.mark.parametrize("style", STYLES)
def test_no_false_alarm_of_the_assistants_turn(style: str, tmp_path: Path) -> None:
    names, notes = told(STYLES[style].template, tmp_path)
    assert "assistant_turn" not in names and "date" not in notes


def test_a_template_that_writes_the_date_is_noted_unless_a_setting_fixes_it(tmp_path: Path) -> None:
    assert "writes the date into prompts (strftime_now)" in told(DATED + TURNS + BEGINS, tmp_path)[1]
    assert told(DATED + TURNS + BEGINS, tmp_path, kwargs={"day": "1 Jan"}) == ([], "")


def test_a_template_that_writes_something_else_each_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="writes something else each time"):
        told("{{ range(100000) | random }}{{ range(100000) | random }}" + TURNS + BEGINS, tmp_path)


def test_a_template_that_reads_parts_alone_and_writes_nothing_else(tmp_path: Path) -> None:
    tokenizer = style_tokenizer(STYLES["chatml"])
    tokenizer.chat_template = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    path = written([{"prompt": "hi", "answer": "1"}], tmp_path, "jsonl")
    given = {"input_key": "prompt", "label_key": "answer", "prompt_template": "{prompt}", "prompt_max_len": 100}
    assert load_prompts(path, tokenizer=tokenizer, apply_chat_template=True, **given).prompts[0].text == "hi"
