"""The reference engine does what transformers does, and nothing with old weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightrft.engine.base import ALL_TAGS, EngineSetup
from lightrft.engine.filters import filter_logits
from lightrft.engine.hf import HFEngine
from lightrft.errors import EngineStateError, WeightSyncError
from lightrft.testing.packed_rows import family, reference
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.types import EngineStatus, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket, tied_names

FAMILIES = [("qwen3", False), ("qwen3", True), ("qwen2", True), ("llama", False)]
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8)


def make_engine(folder: Path, model: Any, **changes: Any) -> HFEngine:
    model.save_pretrained(folder)
    values: dict[str, Any] = dict(
        model_path=str(folder),
        dtype=torch.float32,
        device=torch.device("cpu"),
        seed=0,
        max_model_len=64,
        max_batch_size=3,
        mem_util=0.85,
        trust_remote_code=False,
        rank=0,
        group_size=1,
        group=None,
    )
    return HFEngine(EngineSetup(**values | changes))


def requests(count: int = 5, *, logprobs: bool = True) -> list[Request]:
    return [Request(id=i, prompt_token_ids=list(range(3, 5 + 2 * i)), seed=100 + i, logprobs=logprobs) for i in range(count)]


def weights_of(model: Any) -> list[WeightBucket]:
    names = tied_names(model)
    return [[Weight(names[name], parameter.detach())] for name, parameter in model.named_parameters()]


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[list(c.token_ids) for c in output.completions] for output in outputs]


@pytest.mark.parametrize(("kind", "tie"), FAMILIES)
def test_greedy_and_logprobs_equal_transformers(tmp_path: Path, kind: str, tie: bool) -> None:
    model = tiny_causal_lm(seed=1, family=kind, tie=tie)
    engine = make_engine(tmp_path, model)
    for output in engine.generate(requests(), GREEDY):
        prompt = torch.tensor([list(output.prompt_token_ids)])
        expected = model.generate(prompt, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(prompt))[0, prompt.shape[1] :]
        assert list(output.completions[0].token_ids) == expected.tolist()
    for output in engine.generate(requests(), SamplingParams(temperature=0.7, top_p=0.9, n=2, max_new_tokens=8)):
        for completion in output.completions:
            ids = torch.tensor([[*output.prompt_token_ids, *completion.token_ids]])
            all_logprobs = model(ids).logits[0, len(output.prompt_token_ids) - 1 : -1].detach().log_softmax(-1)
            expected = all_logprobs.gather(-1, torch.tensor(list(completion.token_ids))[:, None]).squeeze(-1)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-5)


def test_a_soft_cap_of_the_attention_counts(tmp_path: Path) -> None:
    """Gemma 2: transformers' sdpa, its default, drops the cap, and another model would sample. At level 2 the model is made anew."""
    engine = make_engine(tmp_path, family("gemma2"))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected, dropped = (model(ids).logits for model in (reference("gemma2"), family("gemma2")))
        assert float((dropped - expected).abs().max()) > 0.01
        torch.testing.assert_close(engine.model(ids).logits, expected, rtol=0, atol=1e-5)
        engine.sleep(2)
        engine.wake_up(ALL_TAGS)
        engine.update_weights(weights_of(family("gemma2")), version=1)
        torch.testing.assert_close(engine.model(ids).logits, expected, rtol=0, atol=1e-5)


def test_a_request_s_draw_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, tiny_causal_lm(seed=1))
    sampling = SamplingParams(n=3, max_new_tokens=8)
    together = tokens(engine.generate(requests(), sampling))
    alone = [tokens(engine.generate([request], sampling))[0] for request in reversed(requests())][::-1]
    assert together == alone
    assert len({tuple(t) for t in together[0]}) > 1, "the n samples of one prompt are different draws"


def test_draws_follow_the_filtered_distribution(tmp_path: Path) -> None:
    model = tiny_causal_lm(seed=2, vocab_size=8)
    engine = make_engine(tmp_path, model)
    sampling = SamplingParams(temperature=1.3, top_p=0.8, n=4000, max_new_tokens=1)
    prompt = [3, 4, 5]
    drawn = engine.generate([Request(id=0, prompt_token_ids=prompt, seed=5)], sampling)[0].completions
    counts = torch.zeros(8)
    for completion in drawn:
        counts[completion.token_ids[0]] += 1
    logits = model(torch.tensor([prompt])).logits[:, -1].detach() / 1.3
    expected = filter_logits(logits, sampling).softmax(-1)[0]
    assert (counts[expected == 0] == 0).all()
    # 5 standard deviations of a binomial fraction
    bound = 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-9
    assert ((counts / 4000 - expected).abs() <= bound).all()


def test_filters_by_hand() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

    def kept(**values: Any) -> list[int]:
        return [i for i, v in enumerate(filter_logits(logits, SamplingParams(**values))[0].tolist()) if v != float("-inf")]

    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=0.65) == [0, 1]
    assert kept(top_p=0.75) == [0, 1, 2]
    assert kept(min_p=0.6) == [0, 1]
    assert kept(top_k=3, top_p=0.7) == [0, 1]  # renormalised: 4/9 + 3/9 >= 0.7


def test_finish_reasons_and_lengths(tmp_path: Path) -> None:
    model = tiny_causal_lm(seed=1)
    engine = make_engine(tmp_path, model, max_model_len=10)
    [output] = engine.generate([Request(id=0, prompt_token_ids=[3, 4, 5, 6], seed=0)], GREEDY)
    assert (len(output.completions[0].token_ids), output.completions[0].finish_reason) == (6, "length")
    first = output.completions[0].token_ids[0]
    [output] = engine.generate(
        [Request(id=0, prompt_token_ids=[3, 4, 5, 6], seed=0)],
        SamplingParams(temperature=0.0, max_new_tokens=5, stop_token_ids=(first,)),
    )
    assert (list(output.completions[0].token_ids), output.completions[0].finish_reason) == ([first], "stop")
    [output] = engine.generate(
        [Request(id=0, prompt_token_ids=[3, 4, 5, 6], seed=0)],
        SamplingParams(temperature=0.0, max_new_tokens=5, min_new_tokens=3, stop_token_ids=(first,)),
    )
    assert len(output.completions[0].token_ids) >= 3
    assert first not in list(output.completions[0].token_ids)[:3]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "request 4: the prompt has no tokens"),
        ([3, 64], "token id 64 is outside"),
        ([-1], "token id -1"),
        ([3] * 64, "64 tokens leaves no room"),
    ],
)
def test_bad_requests_are_named(tmp_path: Path, prompt: list[int], words: str) -> None:
    engine = make_engine(tmp_path, tiny_causal_lm())
    with pytest.raises(ValueError, match=words):
        engine.generate([Request(id=4, prompt_token_ids=prompt, seed=0)], GREEDY)


@pytest.mark.parametrize("tie", [False, True])
def test_an_update_replaces_everything_and_sets_the_version(tmp_path: Path, tie: bool) -> None:
    old, new = tiny_causal_lm(seed=1, tie=tie), tiny_causal_lm(seed=2, tie=tie)
    engine = make_engine(tmp_path / "old", old)
    fresh = make_engine(tmp_path / "new", new)
    sampling = SamplingParams(max_new_tokens=8)
    before = engine.generate(requests(), sampling)
    engine.update_weights(weights_of(new), version=5)
    after, expected = engine.generate(requests(), sampling), fresh.generate(requests(), sampling)
    assert tokens(after) == tokens(expected)
    assert [c.logprobs for o in after for c in o.completions] == [c.logprobs for o in expected for c in o.completions]
    assert [c.logprobs for o in after for c in o.completions] != [c.logprobs for o in before for c in o.completions]
    assert {c.weight_version for o in after for c in o.completions} == {5}


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_a_refused_update_leaves_the_old_weights(tmp_path: Path, fault: str) -> None:
    engine = make_engine(tmp_path, tiny_causal_lm(seed=1))
    before = engine.generate(requests(), GREEDY)
    sent = [weight for bucket in weights_of(tiny_causal_lm(seed=2)) for weight in bucket]
    name = sent[-1].names[0]
    if fault == "missing":
        sent.pop()
    elif fault == "unknown":
        sent.append(Weight(("model.surplus",), torch.zeros(2)))
        name = "model.surplus"
    else:
        sent[-1] = Weight(sent[-1].names, torch.zeros(3))
    with pytest.raises(WeightSyncError, match=f"old ones stay.*{name}"):
        engine.update_weights([sent], version=1)
    assert engine.generate(requests(), GREEDY) == before, "same tokens, same log-probs, same version"


def test_sleep_1_keeps_the_weights(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, tiny_causal_lm(seed=1))
    before = tokens(engine.generate(requests(), GREEDY))
    engine.sleep(1)
    engine.sleep(1)
    assert engine.status is EngineStatus.ASLEEP
    with pytest.raises(EngineStateError, match="asleep"):
        engine.generate(requests(), GREEDY)
    with pytest.raises(EngineStateError, match="asleep"):
        engine.update_weights([], version=1)
    engine.wake_up(("weights",))
    assert engine.status is EngineStatus.WEIGHTS_ONLY
    engine.wake_up(ALL_TAGS)
    assert tokens(engine.generate(requests(), GREEDY)) == before


def test_sleep_2_really_drops_the_weights(tmp_path: Path) -> None:
    model = tiny_causal_lm(seed=1, tie=True)
    engine = make_engine(tmp_path, model)
    before = tokens(engine.generate(requests(), GREEDY))
    engine.sleep(2)
    assert all(p.device.type == "meta" for p in engine.model.parameters())
    engine.wake_up(ALL_TAGS)
    with pytest.raises(EngineStateError, match="dropped the weights; call update_weights"):
        engine.generate(requests(), GREEDY)
    engine.update_weights(weights_of(model), version=1)
    assert tokens(engine.generate(requests(), GREEDY)) == before


def test_the_engine_reads_the_folder_as_transformers_does(tmp_path: Path) -> None:
    model = tiny_causal_lm(seed=3)
    engine = make_engine(tmp_path, model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for (name, mine), (_, other) in zip(engine.model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(mine, other), name
