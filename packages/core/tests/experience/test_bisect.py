"""Each cause of a mismatch, planted into the reference engine, is the one that the bisector names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.diagnostics.mismatch_bisect import Bisector, Verdict
from lightrft.engine.filters import filter_logits
from lightrft.engine.hf import HFEngine
from lightrft.plugins.builtin import HF_CAPABILITIES
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import ALPHABET, tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.types import Completion, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket

TEXTS = ["12+34=", "5", "what is 7?", "a b c d e f g h i j"]


class StaleWeights(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        for _ in buckets:
            pass
        self._version = version


class StaleCache(HFEngine):
    """Answers a prompt that it knows as it did the first time."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        cache = self.__dict__.setdefault("cache", {})
        for output in super().generate(requests, sampling):
            cache.setdefault((tuple(output.prompt_token_ids), sampling), output.completions)
        return [
            RequestOutput(
                id=r.id,
                prompt_token_ids=r.prompt_token_ids,
                completions=tuple(replace(c, weight_version=self._version) for c in cache[tuple(r.prompt_token_ids), sampling]),
            )
            for r in requests
        ]


class Rescored(HFEngine):
    """Samples as it should and reports the log-probs of another distribution."""

    def logits(self, prompt: Sequence[int], tokens: Sequence[int], sampling: SamplingParams) -> torch.Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        return [
            replace(output, completions=tuple(self._rescored(output, c, sampling) for c in output.completions))
            for output in super().generate(requests, sampling)
        ]

    def _rescored(self, output: RequestOutput, completion: Completion, sampling: SamplingParams) -> Completion:
        logits = self.logits(output.prompt_token_ids, completion.token_ids, sampling)[-len(completion.token_ids) - 1 : -1].float()
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(list(completion.token_ids))[:, None]).squeeze(-1)
        return replace(completion, logprobs=chosen.tolist())


class Tempered(Rescored):
    def logits(self, prompt: Sequence[int], tokens: Sequence[int], sampling: SamplingParams) -> torch.Tensor:
        found: torch.Tensor = self.model(torch.tensor([[*prompt, *tokens]])).logits[0]
        return found / (sampling.temperature or 1.0)


class Filtered(Rescored):
    def logits(self, prompt: Sequence[int], tokens: Sequence[int], sampling: SamplingParams) -> torch.Tensor:
        found: torch.Tensor = self.model(torch.tensor([[*prompt, *tokens]])).logits[0]
        return filter_logits(found / sampling.temperature, sampling) if sampling.temperature else found


class WrongPositions(Rescored):
    """Every generated token is at the position of the prompt's last one."""

    def logits(self, prompt: Sequence[int], tokens: Sequence[int], sampling: SamplingParams) -> torch.Tensor:
        positions = torch.tensor([[*range(len(prompt)), *[len(prompt) - 1] * len(tokens)]])
        found: torch.Tensor = self.model(torch.tensor([[*prompt, *tokens]]), position_ids=positions).logits[0]
        return found


class PaddingSeen(Rescored):
    """Pads on the left, and its attention sees the pads."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        self.width = max((len(r.prompt_token_ids) for r in requests), default=0)
        return super().generate(requests, sampling)

    def logits(self, prompt: Sequence[int], tokens: Sequence[int], sampling: SamplingParams) -> torch.Tensor:
        found: torch.Tensor = self.model(torch.tensor([[*[0] * (self.width - len(prompt)), *prompt, *tokens]])).logits[0]
        return found


class Rounded(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        rounded = ([Weight(w.names, w.tensor.bfloat16().float()) for w in bucket] for bucket in buckets)
        super().update_weights(rounded, version=version)


class HalfComputed(Rescored):
    def logits(self, prompt: Sequence[int], tokens: Sequence[int], sampling: SamplingParams) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found: torch.Tensor = self.model(torch.tensor([[*prompt, *tokens]])).logits[0]
        return found


class OneForgotten(HFEngine):
    name = "model.layers.1.self_attn.v_proj.weight"

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        old = dict(self.model.named_parameters())[self.name].clone()
        sent = [Weight(w.names, old if w.names[0] == self.name else w.tensor) for bucket in buckets for w in bucket]
        super().update_weights([sent], version=version)


def verdict_of(
    folder: Path, engine: type[HFEngine] | None, *, checksums: bool = True, alphabet: str = ALPHABET, **sampling: Any
) -> Verdict:
    capabilities = HF_CAPABILITIES if checksums else HF_CAPABILITIES - {Capability.WEIGHT_CHECKSUMS}
    target = f"{__name__}:{engine.__name__}" if engine else "lightrft.engine.hf:HFEngine"
    spec = EngineSpec(name="planted", target=target, capabilities=capabilities)
    config = make_config(dict(strategy="single", engine_type="planted", prompt_max_len=64, generate_max_len=16, verify_sync_every=0))
    strategy = get_strategy(config, registry=fake_registry(spec))
    strategy.setup_inference_engine(config, model_path=str(tiny_model_folder(folder, seed=2, alphabet=alphabet, vocab_size=128)))
    actor, _ = strategy.prepare_trainable(tiny_causal_lm(seed=2, vocab_size=128), optimizer=AdamWSettings(learning_rate=1e-2))

    @torch.no_grad()
    def nudge() -> None:
        generator = torch.Generator().manual_seed(5)
        for parameter in actor.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))

    tokenizer = tiny_tokenizer()
    return Bisector(
        strategy=strategy,
        actor=actor,
        tokenizer=tokenizer,
        prompts=[
            Prompt(index=i, text=text, token_ids=tuple(tokenizer(text)["input_ids"]), answer=None, row={}) for i, text in enumerate(TEXTS)
        ],
        nudge=nudge,
        sampling=SamplingParams(**dict(max_new_tokens=8, ignore_eos=True, seed=0) | sampling),
        micro_batch_size=3,
    ).run()


@pytest.mark.parametrize(
    ("engine", "sampling", "cause", "words"),
    [
        (None, {}, "none", "agree"),
        (None, {"temperature": 0.5, "top_p": 0.8}, "none", "agree"),
        (StaleCache, {}, "stale_cache", "older cache"),
        (StaleWeights, {}, "stale_weights", "older weights"),
        (Tempered, {"temperature": 0.5}, "temperature_or_filters", "divided by the temperature 0.5"),
        (Filtered, {"top_p": 0.7}, "temperature_or_filters", "filtered"),
        (PaddingSeen, {}, "positions_or_padding", "asked alone"),
        (WrongPositions, {}, "positions_or_padding", "first token agrees"),
        (Rounded, {}, "dtype", "rounded to torch.bfloat16"),
        (HalfComputed, {}, "dtype", "bfloat16"),
        (OneForgotten, {}, "parameter", "the engine's model.layers.1.self_attn.v_proj.weight is not"),
    ],
)
def test_the_planted_cause_is_named(tmp_path: Path, engine: Any, sampling: dict[str, Any], cause: str, words: str) -> None:
    verdict = verdict_of(tmp_path, engine, **sampling)
    assert (verdict.cause, words in verdict.detail) == (cause, True), verdict


def test_another_tokenizer_in_the_engine_s_folder_is_named(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, None, alphabet=ALPHABET[::-1])
    assert verdict.cause == "tokenizer" and repr(TEXTS[0]) in verdict.detail


@pytest.mark.parametrize(("engine", "cause"), [(StaleWeights, "stale_weights"), (StaleCache, "stale_cache"), (OneForgotten, "unknown")])
def test_without_checksums_what_needs_none_is_still_named(tmp_path: Path, engine: Any, cause: str) -> None:
    verdict = verdict_of(tmp_path, engine, checksums=False)
    assert verdict.cause == cause, verdict
