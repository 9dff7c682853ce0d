"""The first prompts of a recipe as the model and the rewards will see them: text, token ids, mask, stop tokens. No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightrft.config.reward_names import called
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.engine.stop_tokens import StopTokens, embedding_rows, folder_stop_tokens, unused_generation
from lightrft.experience.samples import samples_of
from lightrft.models.load import load_tokenizer
from lightrft.plugins.registry import Registry
from lightrft.rewards.route import routed
from lightrft.trainer.base_model import scratch_tokenizer, target_text
from lightrft.trainer.prompts import prompt_set, target_end
from lightrft.types import Completion, RequestOutput


def show_prompts(config: Config, *, num_rows: int, registry: Registry) -> dict[str, Any]:
    """What `lightrft show-prompts` prints, of the first `num_rows` usable prompts of `prompt_data`. In this process alone.

    Each row has its prompt, and as an example a completion that is right: the label (or the text to imitate) and the stop token. Its mask
    is 1 where a token is trained: the completion's.

    Raises:
        DataError, EpisodeError, ModelError, PluginError: the data, the environment or the tokenizer cannot be used.
    """
    made_here = config.scratch_tokenizer != "none"
    tokenizer: Any = (
        scratch_tokenizer(config) if made_here else load_tokenizer(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
    )
    found = prompt_set(config, config.prompt_data, tokenizer=tokenizer, registry=registry)
    stops = _stops(config, tokenizer=tokenizer)
    asked = stops.with_setting(config.stop_token_ids, ignore_eos=config.ignore_eos)
    conflict = stops.conflict()
    end = target_end(config, found, tokenizer=tokenizer)
    return {
        "file": found.path,
        "num_prompts": len(found.prompts),
        "num_too_long": found.num_too_long,
        "tokenizer_tokens": len(tokenizer),
        "embedding_rows": len(tokenizer) if made_here else embedding_rows(config.model_name_or_path),
        "stop_tokens": [
            {"id": i, "text": asked.texts.get(i, ""), "sources": [name for name, ids in asked.sources.items() if i in ids]}
            for i in asked.ids
        ],
        "stop": list(config.stop),
        "generation_config_not_used": {} if made_here else unused_generation(config.model_name_or_path),
        "warnings": [*([conflict] if conflict else []), *(sentence for _, sentence in found.findings)],
        "notes": list(found.notes),
        "rewards": [called(reward) for reward in config.reward],
        "rows": [_row(config, prompt, tokenizer=tokenizer, end=end) for prompt in found.prompts[:num_rows]],
    }


def _stops(config: Config, *, tokenizer: Any) -> StopTokens:
    if config.scratch_tokenizer == "none":
        return folder_stop_tokens(config.model_name_or_path, tokenizer=tokenizer, also=config.stop_token_ids)
    also = {i: str(tokenizer.decode([i])) for i in config.stop_token_ids}
    return StopTokens(sources={"tokenizer": (tokenizer.eos_token_id,)}, texts={tokenizer.eos_token_id: tokenizer.eos_token} | also)


def _row(config: Config, prompt: Prompt, *, tokenizer: Any, end: int) -> dict[str, Any]:
    example = _example(config, prompt, tokenizer=tokenizer, end=end)
    ids = [*prompt.token_ids, *example]
    special = _special_ids(tokenizer)
    completion = Completion(token_ids=example, finish_reason="stop", weight_version=0)
    output = RequestOutput(id=0, prompt_token_ids=list(prompt.token_ids), completions=(completion,))
    [sample] = samples_of([prompt], [output], tokenizer=tokenizer)
    return {
        "index": prompt.index,
        "text": prompt.text,
        "num_tokens": len(prompt.token_ids),
        "token_ids": ids,
        "tokens": [str(tokenizer.decode([i], skip_special_tokens=False)) for i in ids],
        "special": [i in special for i in ids],
        "mask": [0] * len(prompt.token_ids) + [1] * len(example),
        "reward_input": {
            "prompt": sample.prompt,
            "completion": sample.completion,
            "raw_completion": sample.raw_completion,
            "token_ids": list(sample.token_ids),
            "answer": sample.answer,
            "answers": list(sample.accepted),
            "row": dict(sample.row),
            "finish_reason": sample.finish_reason,
            "num_tokens": sample.num_tokens,
        },
        "rewards": list(_counting(config, prompt.row)),
    }


def _example(config: Config, prompt: Prompt, *, tokenizer: Any, end: int) -> list[int]:
    """The tokens of a completion that says what the label says, and ends."""
    if not (config.sft_key or prompt.answer):
        return []
    text = target_text(prompt.row, config=config)
    ids: Sequence[int] = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    return [*map(int, ids), end]


def _counting(config: Config, row: Mapping[str, Any]) -> Sequence[str]:
    return list(routed(row, reward_key=config.reward_key, names=[called(reward) for reward in config.reward]))


def _special_ids(tokenizer: Any) -> set[int]:
    return {int(i) for i in tokenizer.added_tokens_decoder} | {int(i) for i in tokenizer.all_special_ids}
