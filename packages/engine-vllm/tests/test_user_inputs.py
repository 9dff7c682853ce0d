"""vLLM ends completions where the reference engine does, in folders whose sources of stop tokens differ, and uses nothing of
generation_config.json.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.data.prompts import load_prompts
from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.engine.stop_tokens import folder_stop_tokens
from lightrft.plugins import Registry
from lightrft.rollout.ends import end_problem
from lightrft.testing.chat_styles import CHATML, GEMMA, LLAMA3, ChatStyle, style_folder, style_tokenizer
from lightrft.types import Request, RequestOutput, SamplingParams

STYLES: dict[str, ChatStyle] = {
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "chatml over a base model": replace(CHATML, generation_eos=("<|endoftext|>",)),
}
SAYS = {"do_sample": True, "temperature": 0.1, "top_k": 1, "repetition_penalty": 5.0, "max_new_tokens": 2, "suppress_tokens": [20, 21]}
ASKED = [
    SamplingParams(temperature=0.0, max_new_tokens=24),
    SamplingParams(temperature=0.0, max_new_tokens=24, min_new_tokens=6),
    SamplingParams(temperature=0.0, max_new_tokens=24, ignore_eos=True),
    SamplingParams(temperature=0.0, max_new_tokens=24, stop=("a", "7", "%"), stop_token_ids=(30, 31)),
]


def setup(path: Path) -> EngineSetup:
    return EngineSetup(
        model_path=str(path), dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=256, max_batch_size=32,
        mem_util=0.3, trust_remote_code=False, rank=0, group_size=1, group=None,
    )  # fmt: skip


def answers(outputs: list[RequestOutput]) -> list[tuple[list[int], str]]:
    return [(list(c.token_ids), c.finish_reason) for output in outputs for c in output.completions]


@pytest.mark.parametrize("name", STYLES)
def test_ends_are_those_of_the_reference_engine(name: str, tmp_path: Path) -> None:
    style = STYLES[name]
    path = style_folder(tmp_path / "m", style, more=SAYS)
    tokenizer = style_tokenizer(style)
    (tmp_path / "d.jsonl").write_text("".join(f'{{"prompt": "say {i}<eos>", "answer": "1"}}\n' for i in range(24)))
    prompts = load_prompts(
        str(tmp_path / "d.jsonl"), tokenizer=tokenizer, input_key="prompt", label_key="answer", prompt_template="{prompt}",
        apply_chat_template=True, prompt_max_len=200, vocab_size=len(tokenizer),
    ).prompts  # fmt: skip
    requests = [Request(id=i, prompt_token_ids=p.token_ids, seed=i) for i, p in enumerate(prompts)]
    stops = folder_stop_tokens(path).ids
    assert len(stops) > 1
    reference = HFEngine(setup(path))
    expected = [answers(reference.generate(requests, sampling)) for sampling in ASKED]
    drawn = SamplingParams(n=16, max_new_tokens=12, temperature=1.9)
    engine: Any = Registry.discover().load("engine", "vllm")(setup(path))
    try:
        assert [answers(engine.generate(requests, sampling)) for sampling in ASKED] == expected
        outputs = engine.generate(requests, drawn)
    finally:
        engine.shutdown()

    def decode(ids: Any, skip: bool) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=skip))

    completions = [c for output in outputs for c in output.completions]
    assert [p for c in completions if (p := end_problem(c, drawn, eos_token_ids=stops, decode=decode))] == []
    assert {c.token_ids[-1] for c in completions if c.finish_reason == "stop"} == set(stops), "each of them ends a completion"
    assert max(len(c.token_ids) for c in completions) == 12 and {20, 21} <= {i for c in completions for i in c.token_ids}
