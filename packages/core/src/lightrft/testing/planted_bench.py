"""What faults of a real engine are planted on. One engine for many of them: each stands between the engine and its controller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightrft.config.load import make_config
from lightrft.diagnostics.sync_probe import SyncProbe
from lightrft.models.load import load_causal_lm
from lightrft.plugins.registry import Registry
from lightrft.strategy.factory import get_strategy
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import Family, tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.types import EngineStatus, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
LAYER = "model.layers.1."
LOWER_DOWN = "model.layers.0.mlp.down_proj.weight"
Q, K, V = (f"{LAYER}self_attn.{name}_proj.weight" for name in "qkv")
GATE, UP, DOWN = (f"{LAYER}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
NORM, EMBEDDING = f"{LAYER}input_layernorm.weight", "model.embed_tokens.weight"

Old = Mapping[str, torch.Tensor]
Spoil = Callable[[list[Weight], Old], list[Weight]]


def keeping(*names: str) -> Spoil:
    """These tensors stay as they were; the engine reads the new ones and does nothing with them."""
    return lambda sent, old: [Weight(w.names, old[w.names[0]]) if w.names[0] in names else w for w in sent]


def exchanging(one: str, other: str) -> Spoil:
    """Each gets the other's values."""

    def spoil(sent: list[Weight], old: Old) -> list[Weight]:
        values = {w.names[0]: w.tensor for w in sent}
        values[one], values[other] = values[other], values[one]
        return [Weight(w.names, values[w.names[0]]) for w in sent]

    return spoil


def without(name: str) -> Spoil:
    """It never comes."""
    return lambda sent, old: [w for w in sent if w.names[0] != name]


def from_on(name: str) -> Spoil:
    """What comes with this tensor and after it stays as it was: the second of two buckets is lost in silence."""

    def spoil(sent: list[Weight], old: Old) -> list[Weight]:
        first = next(i for i, w in enumerate(sent) if w.names[0] == name)
        return [Weight(w.names, old[w.names[0]]) if i >= first else w for i, w in enumerate(sent)]

    return spoil


def rounded(sent: list[Weight], old: Old) -> list[Weight]:
    """To bfloat16 and back."""
    return [Weight(w.names, w.tensor.bfloat16().to(w.tensor.dtype)) for w in sent]


def unchanged(sent: list[Weight], old: Old) -> list[Weight]:
    """Everything stays as it was."""
    return [Weight(w.names, old[w.names[0]]) for w in sent]


def the_other_way_round(sent: list[Weight], old: Old) -> list[Weight]:
    """No fault: which comes first does not matter."""
    return sent[::-1]


def under_one_name(sent: list[Weight], old: Old) -> list[Weight]:
    """Tied ones are told by their first name alone: an engine that keeps a copy for the output layer never hears of it."""
    return [Weight(w.names[:1], w.tensor) for w in sent]


class PlantedBench:
    """A trainer's strategy (one process), a tiny actor and the engine `name`, and a sync as the trainer does it, every verification on."""

    def __init__(self, name: str, folder: Path, *, family: Family = "qwen3", tie: bool = False) -> None:
        tiny_model_folder(folder, family=family, tie=tie)
        settings = {"prompt_max_len": 224, "generate_max_len": 16, "micro_rollout_batch_size": 4, "enable_engine_sleep": False}
        config = make_config({"strategy": "fake", "engine_type": name, "model_name_or_path": str(folder), **settings})
        self.strategy = get_strategy(config, registry=fake_registry(Registry.discover().spec("engine", name)))
        self.strategy.setup_inference_engine(config)
        self.actor: Any = self.strategy.prepare_model(load_causal_lm(folder, dtype=torch.float32))
        self.probe = SyncProbe(strategy=self.strategy, actor=self.actor, config=config, prompts=PROMPTS, tokenizer=tiny_tokenizer())
        self._models = [values_of(tiny_causal_lm(seed=seed, family=family, tie=tie), seed=seed) for seed in (1, 2, 3)]
        self._held: Old = {}
        self._turn = 0

    @property
    def engine(self) -> Any:
        """The real one."""
        return self.strategy.inference_engine

    @property
    def unverified(self) -> list[str]:
        """The weights of the last sync that the engine gives no checksum for."""
        controller: Any = self.strategy._controller
        return list(controller.unverified)

    def sync(self) -> None:
        """Gives the engine other weights than it has; raises what the trainer would be told."""
        old = {name: parameter.detach().clone() for name, parameter in self.actor.named_parameters()}
        self._turn += 1
        with torch.no_grad():
            for name, value in self._models[self._turn % len(self._models)].items():
                self.actor.get_parameter(name).copy_(value)
        self.probe.before_sync()
        self._held = old
        self.strategy.update_engine_weights(self.actor)
        self.probe.after_sync()

    def heal(self) -> None:
        """After a fault that never reached the engine itself: the verdict is taken back, and a sync without the fault is good again."""
        controller: Any = self.strategy._controller
        controller._status = self.engine._status = EngineStatus.AWAKE
        self.engine._version = controller.version
        self.sync()

    @contextmanager
    def spoilt(self, spoil: Spoil) -> Iterator[None]:
        """In here weights reach the engine as `spoil` leaves them; the verification knows what was sent."""

        def update_weights(buckets: Iterable[WeightBucket], *, version: int) -> None:
            sent = [Weight(w.names, w.tensor.detach().clone()) for bucket in buckets for w in bucket]
            type(self.engine).update_weights(self.engine, [spoil(sent, self._held)], version=version)

        with self.instead(update_weights=update_weights):
            yield

    @contextmanager
    def answering(self, change: Callable[[list[RequestOutput]], list[RequestOutput]]) -> Iterator[None]:
        """In here the engine's outputs are changed."""

        def generate(requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
            outputs: list[RequestOutput] = type(self.engine).generate(self.engine, requests, sampling)
            return change(outputs)

        with self.instead(generate=generate):
            yield

    @contextmanager
    def instead(self, **methods: Callable[..., Any]) -> Iterator[None]:
        """In here the engine has these methods in place of its own."""
        engine = self.engine
        for name, method in methods.items():
            setattr(engine, name, method)
        try:
            yield
        finally:
            for name in methods:
                delattr(engine, name)

    def ask(self) -> list[RequestOutput]:
        """A small rollout of two samples for each prompt."""
        return self.strategy.gather_and_generate({"n": 2, "max_new_tokens": 4}, all_prompt_token_ids=PROMPTS)

    def close(self) -> None:
        """Ends the engine."""
        self.strategy.shutdown()


def values_of(model: torch.nn.Module, *, seed: int) -> dict[str, torch.Tensor]:
    """Of each parameter; norms, which are ones in a fresh model, get values of their own."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {name: v + 0.1 * torch.randn(v.shape, generator=generator) if v.dim() == 1 else v for name, v in values.items()}
