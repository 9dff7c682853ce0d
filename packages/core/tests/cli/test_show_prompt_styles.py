"""What `lightrft show-prompts` prints for the chat templates that users bring, without tools and with them; each written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightrft.cli.prompts import marked, run_show_prompts
from lightrft.errors import DataError
from lightrft.testing.chat_styles import STYLES, style_folder

TOOL = {"type": "function", "function": {"name": "add"}}
TEXT = '{"type": "function", "function": {"name": "add"}}'
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ASKED = [{"role": "user", "content": "1+1?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "2"}]
PLAIN = {
    "llama3": "[<|begin_of_text|>][<|start_header_id|>]user[<|end_header_id|>]\n\n1+1?[<|eot_id|>]"
    "[<|start_header_id|>]assistant[<|end_header_id|>]\n\n2[<|eot_id|>]",
    "chatml": "[<|im_start|>]user\n1+1?[<|im_end|>]\n[<|im_start|>]assistant\n2[<|im_end|>]",
    "gemma": "[<bos>][<start_of_turn>]user\n1+1?[<end_of_turn>]\n[<start_of_turn>]model\n2[<end_of_turn>]",
    "mistral": "[<s>][[INST]]1+1?[[/INST]]2[</s>]",
    "deepseek": "[<|begin|>][<|User|>]1+1?[<|Assistant|>][<think>]\n2[<|end|>]",
    "phi": "[<s>][<|user|>]1+1?[<|end|>][<|assistant|>]2[<|end|>]",
}
WITH_TOOLS = {
    "llama3": f"[<|begin_of_text|>][<|start_header_id|>]system[<|end_header_id|>]\n\nFunctions:\n{TEXT}\n[<|eot_id|>]"
    "[<|start_header_id|>]user[<|end_header_id|>]\n\n1+1?[<|eot_id|>]"
    '[<|start_header_id|>]assistant[<|end_header_id|>]\n\n{"name": "add", "parameters": {"a": 1}}[<|eot_id|>]'
    "[<|start_header_id|>]ipython[<|end_header_id|>]\n\n2[<|eot_id|>][<|start_header_id|>]assistant[<|end_header_id|>]\n\n2[<|eot_id|>]",
    "chatml": f"[<|im_start|>]system\n# Tools\n{TEXT}\n[<|im_end|>]\n[<|im_start|>]user\n1+1?[<|im_end|>]\n[<|im_start|>]assistant\n"
    '[<tool_call>]\n{"name": "add", "arguments": {"a": 1}}\n[</tool_call>][<|im_end|>]\n[<|im_start|>]user\n[2][<|im_end|>]\n'
    "[<|im_start|>]assistant\n2[<|im_end|>]",
    "deepseek": f"[<|begin|>]\n## Tools\n{TEXT}\n[<|User|>]1+1?[<|Assistant|>][<|calls|>]add\n"
    '{"a": 1}[<|end|>][<|outputs|>]2[<|Assistant|>][<think>]\n2[<|end|>]',
}
NOT_PRINTED = "does not print the tools in this conversation"
REFUSED = {
    "gemma": (f"{NOT_PRINTED}; leave tools_key out", "roles must alternate"),
    "mistral": ("", f"{NOT_PRINTED}; leave tools_key out"),  # it prints them beside a last turn of the user
    "phi": (f"{NOT_PRINTED}; set system_prompt", "a tool call whose content is null"),
}
NOTES = {"deepseek": "ends prompts with an open <think>", "phi": "does not write '<s>'"}


def shown(folder: Path, style: str, row: dict[str, Any], *words: str) -> dict[str, Any]:
    style_folder(folder / "m", STYLES[style])
    (folder / "d.jsonl").write_text(json.dumps(row | {"a": "2"}))
    given = ["--model_name_or_path", str(folder / "m"), "--prompt_data", str(folder / "d.jsonl"), "--apply_chat_template", *words]
    return run_show_prompts([*given, "--input_key", "q", "--label_key", "a", "--prompt_max_len", "400"], description="")[0]


def brackets(row: dict[str, Any]) -> str:
    return marked(row["tokens"], row["special"]).replace("\u27e6", "[").replace("\u27e7", "]")


@pytest.mark.parametrize("style", PLAIN)
def test_a_question(tmp_path: Path, style: str) -> None:
    report = shown(tmp_path, style, {"q": ASKED})
    [row] = report["rows"]
    assert brackets(row) == PLAIN[style] and row["mask"] == [0] * row["num_tokens"] + [1, 1]
    assert [t["text"] for t in report["stop_tokens"]].count(row["tokens"][-1]) == 1  # what ends the example ends a completion
    assert len(report["notes"]) == (style in NOTES) and NOTES.get(style, "") in "".join(report["notes"]) and report["warnings"] == []


@pytest.mark.parametrize("style", WITH_TOOLS)
def test_a_tool_that_has_answered(tmp_path: Path, style: str) -> None:
    [row] = shown(tmp_path, style, {"q": ANSWERED, "t": [TOOL]}, "--tools_key", "t")["rows"]
    assert brackets(row) == WITH_TOOLS[style]


@pytest.mark.parametrize("style", REFUSED)
def test_tools_that_a_template_cannot_write(tmp_path: Path, style: str) -> None:
    for conversation, words in zip((ASKED, ANSWERED), REFUSED[style], strict=True):
        if words:
            with pytest.raises(DataError, match=words):
                shown(tmp_path, style, {"q": conversation, "t": [TOOL]}, "--tools_key", "t")
