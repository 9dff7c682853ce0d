"""What do an engine's tests stand on? One engine for many tests, the models whose weights it is given, and transformers as the judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightrft.distributed.buckets import Weight, WeightBucket, tied_names
from lightrft.engine.base import EngineSetup, InferenceEngine
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.testing.tiny import Family, tiny_causal_lm, tiny_model_folder
from lightrft.types import Completion, EngineStatus, Request, RequestOutput, SamplingParams

MAX_MODEL_LEN = 256
NUM_MODELS = 3

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8)


class EngineBench:
    """An installed engine in this process (alone, no process group), and models of one architecture with different weights.

    `engine` starts at first use with the weights of `models[0]`; one that became unusable is replaced.
    """

    def __init__(self, name: str, folder: Path, *, family: Family = "qwen3", tie: bool = False) -> None:
        self.spec: EngineSpec = Registry.discover().spec("engine", name)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folder = tiny_model_folder(folder, family=family, tie=tie)
        self.models: list[Any] = [tiny_causal_lm(seed=seed, family=family, tie=tie).train(False) for seed in range(NUM_MODELS)]
        self.models[0].save_pretrained(self.folder)
        self.model = self.models[0]
        self.version = 0
        self._engine: InferenceEngine | None = None

    @property
    def engine(self) -> InferenceEngine:
        if self._engine is None or self._engine.status is EngineStatus.UNUSABLE:
            self.close()
            self._engine = self._start()
            self.model, self.version = self.models[0], 0
        return self._engine

    @property
    def engine_as_it_is(self) -> InferenceEngine:
        """Without replacing an unusable one."""
        assert self._engine is not None
        return self._engine

    def can(self, capability: Capability) -> bool:
        """Whether it declares that for this device."""
        return capability in self.spec.capabilities_on(self.device.type)

    def sync(self, model: Any) -> None:
        """Gives the engine all weights of the model, as the next version."""
        engine = self.engine
        self.version += 1
        engine.update_weights(weights_of(model), version=self.version)
        engine.reset_cache()
        self.model = model

    def close(self) -> None:
        """Ends the engine."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _start(self) -> InferenceEngine:
        engine_class: type[InferenceEngine] = Registry.discover().load("engine", self.spec.name)
        return engine_class(
            EngineSetup(
                model_path=str(self.folder),
                dtype=torch.float32,
                device=self.device,
                seed=0,
                max_model_len=MAX_MODEL_LEN,
                max_batch_size=8,
                mem_util=0.3,
                trust_remote_code=False,
                rank=0,
                group_size=1,
                group=None,
            )
        )


def weights_of(model: Any) -> list[WeightBucket]:
    """Every parameter, tied ones once with all their names, in two buckets whose border lies inside a layer."""
    names = tied_names(model)
    weights = [Weight(names[name], parameter.detach()) for name, parameter in model.named_parameters()]
    middle = next((i for i, w in enumerate(weights) if "k_proj" in w.names[0]), len(weights) // 2)
    return [weights[:middle], weights[middle:]]


def requests_of(prompts: Sequence[Sequence[int]], *, logprobs: bool | Sequence[bool] = True, first_seed: int = 100) -> list[Request]:
    """One request per prompt, with seeds of its own."""
    asked = [logprobs] * len(prompts) if isinstance(logprobs, bool) else logprobs
    return [
        Request(id=i, prompt_token_ids=list(p), seed=first_seed + 1000 * i, logprobs=a)
        for i, (p, a) in enumerate(zip(prompts, asked, strict=True))
    ]


def greedy_tokens(model: Any, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
    """What transformers' own greedy `generate` says."""
    ids = torch.tensor([list(prompt)])
    made = model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False, attention_mask=torch.ones_like(ids))
    tokens: list[int] = made[0, ids.shape[1] :].tolist()
    return tokens


def logprob_error(model: Any, output: RequestOutput, completion: Completion) -> float:
    """Largest |engine - transformers| over the completion's tokens, under the untempered distribution."""
    assert completion.logprobs is not None and len(completion.logprobs) == len(completion.token_ids)
    prompt = list(output.prompt_token_ids)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1].double()
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(list(completion.token_ids))[:, None]).squeeze(-1)
    return float((torch.tensor(completion.logprobs, dtype=torch.float64) - expected).abs().max())
