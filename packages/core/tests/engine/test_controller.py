"""The controller on one rank. State machine, checks of what engines return, and failing engines."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightrft.distributed.mesh import Axis
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup, InferenceEngine
from lightrft.errors import CapabilityError, EngineError, EngineStateError, WeightSyncError
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.testing.fake_engine import FakeEngine
from lightrft.types import EngineStatus, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket

SETUP = EngineSetup(
    model_path="",
    dtype=torch.float32,
    device=torch.device("cpu"),
    seed=0,
    max_model_len=32,
    max_batch_size=4,
    mem_util=0.85,
    trust_remote_code=False,
    rank=0,
    group_size=1,
    group=None,
)
SPEC = EngineSpec(
    name="fake", target="lightrft.testing.fake_engine:FakeEngine", capabilities=frozenset({Capability.SLEEP_1, Capability.SEED})
)
SAMPLING = SamplingParams(n=2, max_new_tokens=4)


def controller(make: Callable[[], InferenceEngine] | None = None, *, sleep_level: int | None = 1) -> RolloutController:
    return RolloutController(
        make or (lambda: FakeEngine(SETUP)),
        spec=SPEC,
        world=World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None),
        group=Axis(ranks=(0,), rank=0, group=None),
        dtype=torch.float32,
        sleep_level=sleep_level,
        seed=3,
        tokenize=lambda text: [ord(c) % 16 for c in text],
    )


def generate(unit: RolloutController, token_ids: Sequence[Sequence[int]] | None = None, **changes: Any) -> list[RequestOutput]:
    values: dict[str, Any] = dict(
        prompt_token_ids=[[3], [4, 5]] if token_ids is None else token_ids,
        prompts=None,
        images=None,
        images_num=None,
        sleep_engine=True,
        logprobs=False,
    )
    return unit.gather_and_generate(changes.pop("sampling", SAMPLING), **values | changes)


def buckets(value: float = 1.0, count: int = 3) -> Iterator[WeightBucket]:
    for index in range(count):
        yield [Weight((f"w{index}",), torch.full((2,), value))]


def calls(unit: RolloutController) -> list[str]:
    assert isinstance(unit.engine, FakeEngine)
    return unit.engine.calls


def test_generation_wakes_and_sleeps_by_itself() -> None:
    unit = controller()
    assert unit.status is EngineStatus.AWAKE
    generate(unit)
    assert unit.status is EngineStatus.ASLEEP
    generate(unit, sleep_engine=False)
    assert unit.status is EngineStatus.AWAKE
    assert calls(unit) == ["generate", "sleep(1)", "wake_up(weights, kv_cache)", "generate"]


def test_sync_wakes_only_weights_and_resets_caches_after_them() -> None:
    unit = controller()
    unit.maybe_sleep()
    unit.update_weights(buckets())
    assert (unit.status, unit.version) == (EngineStatus.WEIGHTS_ONLY, 1)
    assert calls(unit) == ["sleep(1)", "wake_up(weights)", "update_weights", "reset_cache"]
    unit.wake_up()
    assert unit.status is EngineStatus.AWAKE


def test_calls_are_idempotent() -> None:
    unit = controller()
    unit.wake_up()
    unit.maybe_sleep()
    unit.maybe_sleep()
    unit.wake_up()
    unit.wake_up()
    assert calls(unit) == ["sleep(1)", "wake_up(weights, kv_cache)"]


def test_without_sleep_the_status_says_so() -> None:
    unit = controller(sleep_level=None)
    generate(unit)
    unit.maybe_sleep()
    assert unit.status is EngineStatus.AWAKE
    assert calls(unit) == ["generate"]


def test_outputs_keep_order_number_and_version() -> None:
    unit = controller()
    unit.update_weights(buckets())
    outputs = generate(unit, [[3], [4, 5], [6]])
    assert [list(o.prompt_token_ids) for o in outputs] == [[3], [4, 5], [6]]
    assert [len(o.completions) for o in outputs] == [2, 2, 2]
    assert {c.weight_version for o in outputs for c in o.completions} == {1}
    assert generate(unit, []) == []


def test_calls_differ_in_their_draws_unless_the_seed_is_given() -> None:
    first, second = controller(), controller()
    assert generate(first) == generate(second), "the same run draws the same"
    assert generate(first) != generate(controller()), "its second call draws anew"
    fixed = replace(SAMPLING, seed=7)
    assert generate(first, sampling=fixed) == generate(first, sampling=fixed)
    same_prompt = generate(first, [[3], [3]], sampling=replace(fixed, max_new_tokens=16, ignore_eos=True))
    assert same_prompt[0].completions != same_prompt[1].completions, "the same prompt twice is drawn twice"


def test_text_prompts_are_tokenized() -> None:
    unit = controller()
    [output] = generate(unit, prompt_token_ids=None, prompts=["ab"])
    assert list(output.prompt_token_ids) == [1, 2]


@pytest.mark.parametrize("ids", [torch.tensor([3, 4]), (3, 4), [torch.tensor(3), 4]], ids=["tensor", "tuple", "list of tensors"])
def test_token_ids_reach_the_engine_as_plain_integers(ids: Any) -> None:
    [output] = generate(controller(), [ids])
    assert [(type(token), token) for token in output.prompt_token_ids] == [(int, 3), (int, 4)]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(prompts=["a"]), ValueError, "one of them"),
        (dict(prompt_token_ids=None), ValueError, "one of them"),
        (dict(logprobs=[True]), ValueError, "logprobs has 1 entries for 2 prompts"),
        (dict(images=["i"], images_num=[1, 1]), ValueError, "does not fit 2 prompts and 1 images"),
        (dict(images=["i"], images_num=[1, 0]), CapabilityError, "images needs the capability 'multimodal', which engine 'fake'"),
        (
            dict(logprobs=True),
            CapabilityError,
            "logprobs needs the capability 'logprobs'.* unless logprob_gap_prompts and verify_sync_every are 0",
        ),
        (dict(sampling=replace(SAMPLING, stop=("x",))), CapabilityError, "stop=.*'stop_strings'"),
        (dict(sampling=replace(SAMPLING, min_p=0.1)), CapabilityError, "min_p=0.1 needs"),
        (dict(prompt_token_ids=[[99]]), ValueError, "token id 99"),
        (dict(prompt_token_ids=[[3], [4.5]]), ValueError, r"all_prompt_token_ids\[1\] is no sequence of token ids: 'float' object"),
        (dict(prompt_token_ids=["ab"]), ValueError, r"all_prompt_token_ids\[0\] is no sequence of token ids: cannot use a str"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    unit = controller()
    with pytest.raises(error, match=words):
        generate(unit, **changes)
    assert generate(unit), "the engine goes on working"


class Faulty(FakeEngine):
    """A fake with one planted fault."""

    fault = ""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        outputs = super().generate(requests, sampling)
        if self.fault == "too few outputs":
            return outputs[:-1]
        if self.fault == "other order":
            return outputs[::-1]
        if self.fault == "too few completions":
            return [replace(o, completions=o.completions[:-1]) for o in outputs]
        if self.fault == "stale":
            return [replace(o, completions=tuple(replace(c, weight_version=0) for c in o.completions)) for o in outputs]
        return outputs

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        if self.fault == "unread buckets":
            next(iter(buckets))
            return
        if self.fault == "half way":
            next(iter(buckets))
            self._status = EngineStatus.UNUSABLE
            raise WeightSyncError("it stopped half way")
        super().update_weights(buckets, version=version)


def faulty(fault: str) -> RolloutController:
    def make() -> InferenceEngine:
        engine = Faulty(SETUP)
        engine.fault = fault
        return engine

    return controller(make)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("too few outputs", "given 2 requests and returned 1 outputs"),
        ("other order", "in another order"),
        ("too few completions", "returned 1 completions for request 0, asked were 2"),
        ("stale", "sampled from weights version 0, the actor is at 1"),
    ],
)
def test_wrong_answers_of_an_engine_are_errors(fault: str, words: str) -> None:
    unit = faulty(fault)
    unit.update_weights(buckets())
    with pytest.raises(EngineError, match=words):
        generate(unit)


def test_an_engine_that_leaves_buckets_unread_is_an_error_and_the_iterator_is_drained() -> None:
    unit = faulty("unread buckets")
    stream = buckets()
    with pytest.raises(WeightSyncError, match="2 buckets unread"):
        unit.update_weights(stream)
    assert list(stream) == []
    assert unit.version == 0


def test_an_engine_that_fails_half_way_is_unusable_from_then_on() -> None:
    unit = faulty("half way")
    stream = buckets()
    with pytest.raises(WeightSyncError, match="half way"):
        unit.update_weights(stream)
    assert list(stream) == [], "the collective iterator is read to its end"
    assert (unit.status, unit.version) == (EngineStatus.UNUSABLE, 0)
    with pytest.raises(EngineStateError, match="start a new one"):
        generate(unit)


def test_a_refused_update_keeps_old_weights_and_version() -> None:
    unit = controller()
    unit.update_weights(buckets())
    before = generate(unit, sampling=replace(SAMPLING, seed=1))
    with pytest.raises(WeightSyncError, match="w2"):
        unit.update_weights(buckets(2.0, count=2))
    assert unit.version == 1
    assert generate(unit, sampling=replace(SAMPLING, seed=1)) == before


def test_shutdown_is_idempotent_and_final() -> None:
    unit = controller()
    unit.shutdown()
    unit.shutdown()
    assert unit.status is EngineStatus.UNUSABLE
    with pytest.raises(EngineStateError):
        unit.wake_up()
