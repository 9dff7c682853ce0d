"""What an engine's tests stand on. One engine for many tests, and the models whose weights it is given."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lightrft.distributed.mesh import Axis
from lightrft.distributed.world import World
from lightrft.engine.base import ALL_TAGS, EngineSetup, InferenceEngine
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.testing.expert_model import tiny_expert_model
from lightrft.testing.image_text import noise, tiny_image_folder, tiny_image_model
from lightrft.testing.judge import Judge, TransformersJudge
from lightrft.testing.limits import descendants, sentence
from lightrft.testing.tiny import EOS_ID, Family, tiny_causal_lm, tiny_model_folder
from lightrft.types import Completion, EngineStatus, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket, saved_buffers, tied_names

MAX_MODEL_LEN = 2304
MAX_BATCH_SIZE = 8
FAR = 2000
"""Tokens of a prompt that fills a block of any engine's prefix cache, whatever the engine says of it."""
NUM_MODELS = 3
MEM_UTIL = 0.3

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8)

OF_THE_FOLDER: dict[str, Any] = {
    "do_sample": True, "temperature": 0.3, "top_k": 4, "top_p": 0.5, "repetition_penalty": 1.7, "min_new_tokens": 3, "max_new_tokens": 5,
}  # fmt: skip
"""Sampling that the folder's generation_config.json asks for: nothing of it may be used."""
IMAGE_ANSWER = SamplingParams(temperature=0.0, max_new_tokens=4)


class EngineBench:
    """An engine in this process (alone, no process group), and models of one architecture with different weights.

    `engine` starts at first use with the weights of `models[0]`; one that became unusable is replaced. `model` and `version` are what it
    has to have now.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        family: Family = "qwen3",
        tie: bool = False,
        judge: Judge | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.registry = registry or Registry.discover()
        self.spec: EngineSpec = self.registry.spec("engine", name)
        self.judge = judge or TransformersJudge()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folder = tiny_model_folder(folder, family=family, tie=tie)
        self.models: list[Any] = [tiny_causal_lm(seed=seed, family=family, tie=tie).train(False) for seed in range(NUM_MODELS)]
        self.models[0].save_pretrained(self.folder)
        (self.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS_ID, **OF_THE_FOLDER}), encoding="utf-8")
        self.model = self.models[0]
        self._before: Any = None
        self.version = 0
        self.adapter_syncs = 0  # the version, where the last sync brought adapters alone
        self._engine: InferenceEngine | None = None
        self.processes: dict[int, str] = {}
        self.asking, self.blocked = "", ""  # the test that asks now; the one that found what makes asking more worthless
        self.starts = 0
        self._answers: WeakKeyDictionary[Any, dict[tuple[int, ...], list[int]]] = WeakKeyDictionary()
        self.short = [3, 4, 5]
        self.long = self.filling(200)
        self.prompts = [self.short, self.long, self.filling(36)]

    def filling(self, length: int) -> list[int]:
        """A prompt of so many tokens; a longer one begins as a shorter one does."""
        kinds = self.judge.vocab_size - 14 if self.judge.vocab_size > 32 else self.judge.vocab_size - 3
        return [3 + (7 * i) % kinds for i in range(length)]

    def cache_lengths(self) -> list[int]:
        """How long prompts are that a prefix cache finds: one of the usual sizes, one far beyond any, and more than two declared blocks.

        Raises:
            AssertionError: the engine declares a block of which two do not fit into the kit's context.
        """
        block, longest = self.engine.cache_block, MAX_MODEL_LEN - GREEDY.max_new_tokens
        assert block >= 0, f"cache_block is {block}; it is a number of tokens, 0 where there is no prefix cache"
        assert 2 * block < longest, f"cache_block is {block}: two of them do not fit into the {MAX_MODEL_LEN} tokens of the kit's context"
        return sorted({200, FAR, *((2 * block + 1,) if block else ())})

    @property
    def engine(self) -> InferenceEngine:
        if self._engine is None or self._engine.status is EngineStatus.UNUSABLE:
            self.restart()
        assert self._engine is not None
        return self._engine

    @property
    def engine_as_it_is(self) -> InferenceEngine:
        """Without replacing an unusable one."""
        assert self._engine is not None
        return self._engine

    def ready(self) -> None:
        """Awake, and of no test before that failed half-way."""
        self.engine.wake_up(ALL_TAGS)
        if self.engine.status is not EngineStatus.AWAKE:
            self.restart()

    def with_the_folders_weights(self) -> None:
        """A new engine, unless this one is."""
        if self.version or self.model is not self.models[0] or self.engine.status is not EngineStatus.AWAKE:
            self.restart()

    def restart(self, *, mem_util: float = MEM_UTIL, options: Mapping[str, Any] | None = None, **asked: Any) -> None:
        """A new engine with the folder's weights; `mem_util` is its fraction of a GPU's memory, `options` are those of its library,
        `asked` are other fields of `EngineSetup`.

        Raises:
            AssertionError: it does not start; with the usual memory nothing more is asked.
        """
        self.close()
        self.processes = descendants()
        self.starts += 1
        try:
            self._engine = self._start(mem_util, options or {}, asked)
        except Exception as error:
            self.blocked = self.asking if mem_util == MEM_UTIL else ""
            raise AssertionError(f"the engine does not start: {sentence(error)}") from error
        self.model, self._before, self.version, self.adapter_syncs = self.models[0], None, 0, 0

    def can(self, capability: Capability) -> bool:
        """Whether it declares that for this device."""
        return capability in self.spec.capabilities_on(self.device.type)

    def sync(self, model: Any, *, version: int | None = None) -> None:
        """Gives the engine all weights of the model, as the next version or another."""
        engine = self.engine
        self.version = self.version + 1 if version is None else version
        try:
            engine.update_weights(weights_of(model), version=self.version)
            engine.reset_cache()
        except Exception as error:
            self.blocked = self.asking
            raise AssertionError(f"a sync of all weights failed, nothing more can be asked: {sentence(error)}") from error
        self._before, self.model = self.model, model

    def greedy(self, prompt: Sequence[int]) -> list[int]:
        """What the engine has to answer to `GREEDY` now."""
        known = self._answers.setdefault(self.model, {})
        if tuple(prompt) not in known:
            known[tuple(prompt)] = self.judge.greedy(self.model, prompt, max_new_tokens=GREEDY.max_new_tokens)
        return list(known[tuple(prompt)])

    def greedy_before(self, prompt: Sequence[int]) -> list[int] | None:
        """What it had to answer before the last sync."""
        return self.judge.greedy(self._before, prompt, max_new_tokens=GREEDY.max_new_tokens) if self._before is not None else None

    def many_prompts(self) -> Iterator[list[int]]:
        """64 short ones, to look for one whose answer is of some kind."""
        yield from ([3 + i, 4, 5 + j] for i in range(8) for j in range(8))

    def talkative(self) -> list[int]:
        """A prompt whose greedy answer does not end by itself within `GREEDY`."""
        return next(p for p in self.many_prompts() if len(a := self.greedy(p)) == GREEDY.max_new_tokens and a[-1] != self.judge.eos_id)

    @cached_property
    def lively(self) -> list[Any]:
        """`models` whose layers outweigh their embeddings: greedy, those with tied embeddings would repeat one token."""
        changed = copy.deepcopy(self.models)
        for model in changed:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.mul_(40.0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
        return changed

    def answering(self, fits: Callable[[list[int]], bool]) -> tuple[list[int], list[int]]:
        """A prompt, and its greedy answer under `GREEDY`, that fits; syncs the lively model that gives it.

        Raises:
            AssertionError: none does.
        """
        for model in self.lively:
            for prompt in self.many_prompts():
                answer = self.judge.greedy(model, prompt, max_new_tokens=GREEDY.max_new_tokens)
                if fits(answer):
                    self.sync(model)
                    return prompt, answer
        raise AssertionError("the kit's models have no greedy answer of the kind that this test needs")

    def changed_in(self, ending: str) -> Any:
        """`models[0]` with another value in the parameters of that name, in the first layer where it is one of a layer."""
        changed = copy.deepcopy(self.models[0])
        with torch.no_grad():
            for name, parameter in changed.named_parameters():
                if name.endswith(ending) and "layers.1." not in name:
                    parameter.copy_(4.0 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * parameter.std())
        return changed

    def sharpened(self) -> Any:
        """`models[0]` with logits 12 times as large: of a fresh model they are so flat that no temperature would show."""
        changed = copy.deepcopy(self.models[0])
        with torch.no_grad():
            changed.get_parameter("model.norm.weight").mul_(12.0)
        return changed

    def judge_logprobs(self, output: RequestOutput, completion: Completion, sampling: SamplingParams, *, bound: float) -> None:
        """Raises AssertionError where log-probs are not those of the judge, and says of what they are, where that can be told."""
        found = torch.tensor(completion.logprobs, dtype=torch.float64)
        assert len(found) == len(completion.token_ids), f"{len(found)} log-probs for {len(completion.token_ids)} tokens"
        expected = self.judge.logprobs(self.model, list(output.prompt_token_ids), completion.token_ids)
        error = float((found - expected).abs().max())
        if error < bound:
            return
        heat = sampling.temperature or 1.0
        tempered = self.judge.logprobs(self.model, list(output.prompt_token_ids), completion.token_ids, temperature=heat)
        hint = ""
        if heat != 1.0 and float((found - tempered).abs().max()) < bound:
            hint = f": they are of the distribution after temperature {sampling.temperature}"
        elif len(found) > 1 and min(float((found[1:] - expected[:-1]).abs().max()), float((found[:-1] - expected[1:]).abs().max())) < bound:
            hint = ": they are shifted by one token"
        raise AssertionError(
            f"log-probs differ by {error:.2e} from those of the untempered, unfiltered distribution{hint} "
            f"(drawn with {drawn_with(sampling)})"
        )

    def judge_group(self, output: RequestOutput, sampling: SamplingParams, *, bound: float, where: str = "under load") -> None:
        """`judge_logprobs` of all completions of a prompt; the first that is wrong is named, and `where` it was asked for.

        Raises:
            AssertionError: log-probs are missing, or are not those of the judge.
        """
        completions = [list(c.token_ids) for c in output.completions]
        expected = self.judge.logprobs_of_each(self.model, list(output.prompt_token_ids), completions)
        for sample, (completion, right) in enumerate(zip(output.completions, expected, strict=True)):
            assert completion.logprobs is not None, f"request {output.id}, sample {sample} has no log-probs, asked were those of all"
            found = torch.tensor(completion.logprobs, dtype=torch.float64)
            if len(found) == len(right) and float((found - right).abs().max()) < bound:
                continue
            try:
                self.judge_logprobs(output, completion, sampling, bound=bound)
            except AssertionError as error:
                raise AssertionError(f"{where}, request {output.id}, sample {sample} of {sampling.n}: {error}") from error

    def through_controller(self, sampling: SamplingParams, *, logprobs: bool = False) -> list[RequestOutput]:
        """A rollout of one prompt as core asks for it, on one rank."""
        group = Axis(ranks=(0,), rank=0, group=None)
        world = World(rank=0, world_size=1, local_rank=0, device=self.device, group=None)
        controller = RolloutController(
            lambda: self.engine,
            spec=self.spec,
            world=world,
            group=group,
            dtype=torch.float32,
            sleep_level=None,
            seed=0,
            tokenize=lambda text: [ord(c) for c in text],
        )
        controller.version = self.version
        return controller.gather_and_generate(
            sampling, prompt_token_ids=[self.short], prompts=None, images=None, images_num=None, sleep_engine=False, logprobs=logprobs
        )

    def abandon(self, words: str) -> None:
        """Asks nothing more of an engine that hangs; it is not ended, for that would hang as well."""
        self._engine, self.blocked = None, self.asking

    def close(self) -> None:
        """Ends the engine."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _start(self, mem_util: float, options: Mapping[str, Any], asked: dict[str, Any]) -> InferenceEngine:
        engine_class: type[InferenceEngine] = self.registry.load("engine", self.spec.name)
        return engine_class(
            EngineSetup(
                model_path=str(self.folder),
                dtype=torch.float32,
                device=self.device,
                seed=0,
                max_model_len=MAX_MODEL_LEN,
                max_batch_size=MAX_BATCH_SIZE,
                mem_util=mem_util,
                trust_remote_code=False,
                rank=0,
                group_size=1,
                group=None,
                options=options,
                **asked,
            )
        )


class ImageBench(EngineBench):
    """The same with an image-text model in the place of the text model."""

    def __init__(self, name: str, folder: Path, *, judge: Judge | None = None, registry: Registry | None = None) -> None:
        super().__init__(name, folder / "text", judge=judge, registry=registry)
        self.models = [tiny_image_model(seed=seed) for seed in range(2)]
        self.folder = tiny_image_folder(folder / "images", self.models[0])
        self.model = self.models[0]

    def requests(self) -> list[Request]:
        """Text alone; three images, each with the same tokens around it; two images in one prompt. Each answer of the model's differs."""
        image, text = list(self.judge.image_tokens), [5, 6, 7]
        prompts: list[tuple[list[int], list[Any]]] = [(text, [])]
        answers = [self.answer(text, [])]
        for seed in range(64):
            if len(prompts) < 4 and (made := self.answer([*image, *text], [noise(seed)])) not in answers:
                prompts.append(([*image, *text], [noise(seed)]))
                answers.append(made)
        prompts.append(([*image, 5, *image, 6], [prompts[1][1][0], prompts[2][1][0]]))
        return [Request(id=i, prompt_token_ids=prompt, seed=100 + i, images=tuple(images)) for i, (prompt, images) in enumerate(prompts)]

    def answer(self, prompt: Sequence[int], images: Sequence[Any]) -> list[int]:
        """The model's own, three tokens: so early none of the tokens that stand for images comes."""
        return self.judge.greedy(self.model, prompt, max_new_tokens=IMAGE_ANSWER.max_new_tokens, images=images)


class ExpertBench(EngineBench):
    """The same with a model of experts."""

    def __init__(self, name: str, folder: Path, *, judge: Judge | None = None, registry: Registry | None = None) -> None:
        super().__init__(name, folder, judge=judge, registry=registry)
        self.models = [tiny_expert_model(seed=seed) for seed in range(2)]
        self.models[0].save_pretrained(self.folder)
        self.model = self.models[0]


def drawn_with(sampling: SamplingParams) -> str:
    """What of it narrows or tempers the draw, in words."""
    return ", ".join(f"{name} {getattr(sampling, name):g}" for name in ("temperature", "top_k", "top_p", "min_p", "n", "min_new_tokens"))


def weights_of(model: Any) -> list[WeightBucket]:
    """Every parameter, tied ones once with all their names, and saved buffer, in two buckets whose border lies inside a layer."""
    names = tied_names(model)
    weights = [Weight(names[name], parameter.detach()) for name, parameter in model.named_parameters()]
    weights += [Weight((name,), buffer.detach(), is_buffer=True) for name, buffer in saved_buffers(model).items()]
    middle = next((i for i, w in enumerate(weights) if "k_proj" in w.names[0]), len(weights) // 2)
    return [weights[:middle], weights[middle:]]


def requests_of(prompts: Sequence[Sequence[int]], *, logprobs: bool | Sequence[bool] = True, first_seed: int = 100) -> list[Request]:
    """One request per prompt, with seeds of its own."""
    asked = [logprobs] * len(prompts) if isinstance(logprobs, bool) else logprobs
    return [
        Request(id=i, prompt_token_ids=list(p), seed=first_seed + 1000 * i, logprobs=a)
        for i, (p, a) in enumerate(zip(prompts, asked, strict=True))
    ]
