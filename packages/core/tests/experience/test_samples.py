"""What a reward sees of a completion: texts without and with special tokens, token ids, every accepted answer."""

from __future__ import annotations

from lightrft.data.prompts import Prompt
from lightrft.experience.samples import samples_of
from lightrft.testing.tiny import EOS_ID, tiny_tokenizer
from lightrft.types import Completion, RequestOutput, Sample


def test_a_sample_has_the_ids_and_the_text_with_special_tokens() -> None:
    tokenizer = tiny_tokenizer("0123456789abc")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    think, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    ids = [think, *tokenizer("ab")["input_ids"], end, *tokenizer("7")["input_ids"], EOS_ID]
    prompt = Prompt(index=0, text="1", token_ids=(4,), answer="7", answers=("7", "seven"), row={"k": 1})
    output = RequestOutput(id=0, prompt_token_ids=[4], completions=(Completion(token_ids=ids, finish_reason="stop", weight_version=0),))
    [sample] = samples_of([prompt], [output], tokenizer=tokenizer)
    assert (sample.completion, sample.raw_completion) == ("ab7", "<think>ab</think>7<eos>")
    assert sample.token_ids == ids and sample.num_tokens == len(ids)
    assert (sample.answer, sample.accepted) == ("7", ("7", "seven"))


def test_accepted_answers_of_one_label_and_of_none() -> None:
    assert Sample(prompt="p", completion="c", answer="1").accepted == ("1",)
    assert Sample(prompt="p", completion="c").accepted == ()


def test_a_rank_without_prompts_has_no_samples() -> None:
    assert samples_of([], [], tokenizer=tiny_tokenizer("1")) == []


def test_what_a_reward_changes_in_a_row_is_gone_when_the_prompt_comes_again() -> None:
    prompt = Prompt(index=0, text="1", token_ids=(4,), answer="7", row={"k": 1, "cases": [{"in": [1]}]})
    output = RequestOutput(id=0, prompt_token_ids=[4], completions=(Completion(token_ids=[4], finish_reason="stop", weight_version=0),))
    for _ in range(2):
        [sample] = samples_of([prompt], [output], tokenizer=tiny_tokenizer("1"))
        assert sample.row == {"k": 1, "cases": [{"in": [1]}]}
        sample.row.pop("k")  # type: ignore[attr-defined]
        sample.row["cases"][0]["in"].append(2)
