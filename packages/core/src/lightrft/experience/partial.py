"""Rollouts that do not wait for their longest answer: what is unfinished goes on in the next step, under that step's weights.

Partial rollouts: Kimi Team 2025, "Kimi k1.5", section 2.6.2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Generic

import torch

from lightrft.batch.collect import answers_of
from lightrft.batch.exchange import even_targets, exchange
from lightrft.batch.stages import Sampled
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.distributed.collectives import gather_objects
from lightrft.experience.samples import samples_of
from lightrft.experience.sampling import sampling_params
from lightrft.experience.unfinished import Answer, Group, Member, answers_of_state, output_of, state_of
from lightrft.observe.metrics import StepMetrics
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import Completion

SLICES = 8
"""Slices of the longest answer, where the settings name no length of a slice."""


class PartialRollouts(ABC, Generic[Member]):
    """The prompts in flight of this rank, and what grows of each. `oversample` x `rollout_batch_size` prompts of all ranks are in flight.

    Each grows by a slice of tokens, which is one call to the engine with the prompt and what there is of the answer; then the
    ranks look together whether enough is finished: `rollout_batch_size` prompts, and all that were begun `max_version_lag` updates ago.
    So no token is trained that is older, and none is thrown away. The oldest finished prompts are trained; the others wait for the next
    step, finished or not.

    Raises:
        ValueError: a prompt has images.
    """

    def __init__(self, *, strategy: StrategyBase, config: Config, tokenizer: Any, prompts: Sequence[Prompt]) -> None:
        """`prompts`: all that the run trains on, which a checkpoint names by their places."""
        if any(prompt.images for prompt in prompts):
            raise ValueError(f"the prompts have images, which max_version_lag={config.max_version_lag} does not go on from; leave it out")
        self.strategy, self.config, self.tokenizer = strategy, config, tokenizer
        self._prompts = prompts
        self._rows = {id(prompt): row for row, prompt in enumerate(prompts)}
        self._groups: list[Group[Member]] = []
        self._left = [0] * strategy.world.world_size
        self._begun = 0
        length = config.slice_max_len or math.ceil(config.generate_max_len / SLICES)
        self._slice = replace(sampling_params(config), n=1, max_new_tokens=min(length, config.generate_max_len))

    def wanted(self) -> list[int]:
        """How many prompts each rank begins in the next step. Local, the same on every rank."""
        in_flight = Fraction(str(self.config.oversample)) * self.config.rollout_batch_size
        return [math.ceil(in_flight / len(self._left)) - left for left in self._left]

    def sampled(self, prompts: Sequence[Prompt], *, metrics: StepMetrics) -> Sampled:
        """This rank's sequences of `rollout_batch_size` finished prompts of all ranks; `prompts`, `wanted` many, are begun. Collective."""
        self._begin(prompts)
        slices = 0
        while not self._enough():
            self._grow()
            slices += 1
        self.strategy.maybe_sleep_inference_engine()
        taken, unfinished = self._take()
        self._look_at(taken, metrics)
        targets = even_targets(gather_objects(len(taken), group=self.strategy.world.group))[self.strategy.world.rank]
        to = torch.tensor([rank for rank, group in zip(targets, taken, strict=True) for _ in group.answers], dtype=torch.int64)
        batch = exchange(self._columns(taken), to, group=self.strategy.world.group)
        self._count(batch, metrics, slices=slices, unfinished=unfinished)
        return batch

    def fresh(self, batch: Sampled) -> Sampled:
        """The batch with the tokens of the present weights as its only sampled ones: on them an engine's log-probs are checked. Local."""
        return replace(batch, loss_mask=batch.loss_mask & (batch.versions == self.strategy.weight_version))

    def state_dict(self) -> dict[str, Any]:
        """Of this rank: the prompts in flight, with their answers so far."""
        groups = [
            {"row": self._rows[id(group.prompt)], "serial": group.serial, "version": group.version, **self._state(group.answers)}
            for group in self._groups
        ]
        return {"begun": self._begun, "left": list(self._left), "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self._begun, self._left = state["begun"], list(state["left"])
        prompts = [self._prompts[one["row"]] for one in state["groups"]]
        self._groups = [
            Group(prompt=prompt, serial=one["serial"], version=one["version"], answers=self._of_state(one, prompt))
            for one, prompt in zip(state["groups"], prompts, strict=True)
        ]

    def close(self) -> None:
        """Nothing goes on. Idempotent. Local."""

    # ---- what grows: answers, or episodes ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _new(self, prompts: Sequence[Prompt]) -> list[list[Member]]:
        """Those of each prompt, begun."""

    @abstractmethod
    def _context(self, prompt: Prompt, one: Member) -> Sequence[int]:
        """What the engine goes on from."""

    @abstractmethod
    def _add(self, grown: Sequence[Member], drawn: Sequence[Completion]) -> None:
        """The slice that the engine drew of each. Local."""

    @abstractmethod
    def _columns(self, groups: Sequence[Group[Member]]) -> Sampled:
        """Groups that are complete, with the version of each sampled token."""

    @abstractmethod
    def _state(self, answers: Sequence[Member]) -> dict[str, Any]:
        """Of the answers to one prompt: plain values and tensors, copied."""

    @abstractmethod
    def _of_state(self, state: Mapping[str, Any], prompt: Prompt) -> list[Member]:
        """The reverse of `_state`."""

    def _look_at(self, taken: Sequence[Group[Member]], metrics: StepMetrics) -> None:
        """At what this step trains, before it goes to the ranks that train it. Collective."""

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _begin(self, prompts: Sequence[Prompt]) -> None:
        wanted, rank = self.wanted(), self.strategy.world.rank
        assert len(prompts) == wanted[rank], f"{len(prompts)} prompts were given to begin, {wanted[rank]} are wanted"
        first, version = self._begun + sum(wanted[:rank]), self.strategy.weight_version
        self._groups += [
            Group(prompt=prompt, serial=first + at, version=version, answers=answers)
            for at, (prompt, answers) in enumerate(zip(prompts, self._new(prompts), strict=True))
        ]
        self._begun += sum(wanted)

    def _enough(self) -> bool:
        """Whether the step can end: the same on every rank. Collective."""
        oldest = self.strategy.weight_version - self.config.max_version_lag
        waited_for = any(not group.complete and group.version <= oldest for group in self._groups)
        found = {"complete": sum(group.complete for group in self._groups), "waits": int(waited_for)}
        found = self.strategy.all_reduce(found, "sum")
        return bool(found["complete"] >= self.config.rollout_batch_size and not found["waits"])

    def _grow(self) -> None:
        """Another slice of every answer that goes on. Collective."""
        going = [(group.prompt, one) for group in self._groups for one in group.answers if not one.done]
        outputs = self.strategy.gather_and_generate(
            sampling_params=self._slice,
            all_prompt_token_ids=[self._context(prompt, one) for prompt, one in going],
            sleep_engine=False,
            logprobs=True,
        )
        self._add([one for _, one in going], [output.completions[0] for output in outputs])

    def _take(self) -> tuple[list[Group[Member]], int]:
        """This rank's part of the oldest finished prompts, which leave the flight; and how many stay in it on all ranks. Collective."""
        mine = ([group.serial for group in self._groups if group.complete], len(self._groups))
        ranks = gather_objects(mine, group=self.strategy.world.group)
        chosen = set(sorted(serial for serials, _ in ranks for serial in serials)[: self.config.rollout_batch_size])
        self._left = [number - len(chosen.intersection(serials)) for serials, number in ranks]
        taken = [group for group in self._groups if group.serial in chosen]
        self._groups = [group for group in self._groups if group.serial not in chosen]
        return taken, sum(self._left)

    def _count(self, batch: Sampled, metrics: StepMetrics, *, slices: int, unfinished: int) -> None:
        lags = [self.strategy.weight_version - versions for versions in batch.by_sequence(batch.versions)]
        continued = sum(bool(len(lag) and lag.max() > 0) for lag in lags)
        tokens = torch.cat([torch.zeros(0, dtype=torch.int32), *lags])
        largest = float(tokens.max()) if len(tokens) else 0.0
        by_lag = {f"partial/lag/{lag}": float((tokens == lag).sum()) for lag in range(self.config.max_version_lag + 1)}
        metrics.mean("partial/continued", float(continued), float(len(batch)))
        metrics.mean("partial/lag_mean", float(tokens.sum()), float(len(tokens)))
        metrics.add("partial/lag_max", {}, lambda found: {"partial/lag_max": found["lag"]}, largest={"lag": largest})
        metrics.add("tokens by lag", by_lag, dict)
        metrics.add("partial", {}, lambda _: {"partial/slices": float(slices), "partial/in_flight": float(unfinished)})


class PartialAnswers(PartialRollouts[Answer]):
    """Of single answers, `n_samples_per_prompt` to each prompt."""

    def _new(self, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        return [[Answer() for _ in range(self.config.n_samples_per_prompt)] for _ in prompts]

    def _context(self, prompt: Prompt, one: Answer) -> Sequence[int]:
        return [*prompt.token_ids, *one.token_ids]

    def _add(self, grown: Sequence[Answer], drawn: Sequence[Completion]) -> None:
        for answer, completion in zip(grown, drawn, strict=True):
            answer.add(completion, asked=self._slice.max_new_tokens, limit=self.config.generate_max_len)

    def _columns(self, groups: Sequence[Group[Answer]]) -> Sampled:
        outputs = [output_of(group) for group in groups]
        batch = answers_of(outputs)
        versions = batch.versions.clone()
        sampled = [version for group in groups for answer in group.answers for version in answer.versions]
        versions[batch.loss_mask] = torch.tensor(sampled, dtype=torch.int32)
        samples = samples_of([group.prompt for group in groups], outputs, tokenizer=self.tokenizer)
        return replace(batch, versions=versions, samples=tuple(samples))

    def _state(self, answers: Sequence[Answer]) -> dict[str, Any]:
        return state_of(answers)

    def _of_state(self, state: Mapping[str, Any], prompt: Prompt) -> list[Answer]:
        return answers_of_state(state)
