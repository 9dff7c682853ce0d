"""Whether images reach the models: what trainer and engine say of a few prompts with their images, with blank ones, with others'."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import torch

from lightrft.batch.collect import sequences_of
from lightrft.batch.planning import Batching
from lightrft.batch.stages import Sampled
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.diagnostics.logprob_agreement import Gap, gap_between
from lightrft.distributed.collectives import agree
from lightrft.engine.rounding import bound_for
from lightrft.errors import ImageError
from lightrft.experience.images import PromptImages, ReadPrompts
from lightrft.experience.scoring import score_logprobs
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import Completion, RequestOutput, SamplingParams, each_frame, frames_of

NUM_PROMPTS = 3
NEW_TOKENS = 4
BLANK, OTHER = "a blank one", "another prompt's"


class ImageCheck:
    """Every rank asks its engine the same prompts, so each engine group is checked. Making one is local; `run` is collective.

    An image counts as seen where putting another one in its place moves a log-prob of the answer by more than rounding explains.
    """

    def __init__(
        self, *, strategy: StrategyBase, actor: torch.nn.Module, config: Config, images: PromptImages, prompts: Sequence[Prompt]
    ) -> None:
        self.strategy, self.actor, self.config, self.images = strategy, actor, config, images
        self.prompts = [prompt for prompt in prompts if prompt.images][:NUM_PROMPTS]
        self.sampling = SamplingParams(temperature=0.0, max_new_tokens=min(NEW_TOKENS, config.generate_max_len), ignore_eos=True)
        self.bound = bound_for(strategy.engine_dtype, device_type=strategy.world.device.type)

    def run(self) -> dict[str, float]:
        """Leaves the engine awake. Returns metrics, identical on every rank: fraction of prompts in which another image moves the answer.

        Raises:
            ImageError: trainer and engine differ beyond rounding, or no other image moves one of them, or both; on all ranks.
        """
        read = self.images.read(self.prompts)
        outputs = self._ask(read)
        answers, mine = self._scored(read, outputs)
        gap = gap_between(answers, mine, strategy=self.strategy)
        moved: dict[str, tuple[float, float]] = {}
        for name, pictures in self._instead(read.pictures).items():
            changed = self.images.shown(self.prompts, pictures)
            _, theirs = self._scored(changed, outputs)
            fractions = (self._fraction(answers.by_sequence(theirs - mine)), self._engine_fraction(outputs, self._ask(changed)))
            moved[name] = self.strategy.all_reduce(fractions[0], "min"), self.strategy.all_reduce(fractions[1], "min")
        problem = self._problem(moved, gap)
        agree(ImageError(problem) if problem else None, group=self.strategy.world.group, doing="checking images")
        trainer, engine = (min(pair[at] for pair in moved.values()) for at in (0, 1))
        return {"verify/image_trainer": trainer, "verify/image_engine": engine}

    def _instead(self, pictures: Sequence[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
        """The pictures that stand for the true ones, of the same sizes: what differs is what they show."""
        from PIL import Image

        blank = [tuple(each_frame(one, lambda frame: Image.new("RGB", frame.size, "white")) for one in own) for own in pictures]
        turned = [*pictures[1:], *pictures[:1]]
        other = [tuple(_like(one, new[0]) for one in own) for own, new in zip(pictures, turned, strict=True)]
        pairs = [pair for own, new in zip(pictures, other, strict=True) for pair in zip(own, new, strict=True)]
        differ = any(a.tobytes() != b.tobytes() for one, new in pairs for a, b in zip(frames_of(one), frames_of(new), strict=True))
        return {BLANK: blank} | ({OTHER: other} if differ else {})

    def _ask(self, read: ReadPrompts) -> list[RequestOutput]:
        return self.strategy.gather_and_generate(self.sampling, **read.asked, sleep_engine=False, logprobs=True)

    def _scored(self, read: ReadPrompts, outputs: Sequence[RequestOutput]) -> tuple[Sampled, torch.Tensor]:
        """The engine's answers after these prompts, and the trainer's log-probs of them, float32 [S]."""
        whole = read.whole()
        kept, _ = self.images.without_reserved(outputs)
        batch = sequences_of(
            [(ids, output.completions[0]) for (ids, _), output in zip(whole, kept, strict=True)],
            group_ids=range(len(kept)),
            images=[own for _, own in whole],
        )
        batching = Batching(train_batch_size=1, micro_batch_size=self.config.micro_rollout_batch_size, blank=self.images.blank)
        parts = batching.micro_batches(batch, torch.arange(len(batch)))
        [found] = score_logprobs(self.actor, batch, parts, strategy=self.strategy, batching=batching, temperatures=(1.0,))
        return batch, found

    def _fraction(self, differences: Sequence[torch.Tensor]) -> float:
        moves = [bool((one.abs() > self.bound.mean).any()) for one in differences]
        return sum(moves) / len(moves)

    def _engine_fraction(self, before: Sequence[RequestOutput], after: Sequence[RequestOutput]) -> float:
        """Of prompts whose answer has other tokens, or other log-probs of the same ones."""
        moves = [self._moves(a.completions[0], b.completions[0]) for a, b in zip(before, after, strict=True)]
        return sum(moves) / len(moves)

    def _moves(self, one: Completion, other: Completion) -> bool:
        if list(one.token_ids) != list(other.token_ids):
            return True
        pairs = zip(one.logprobs or (), other.logprobs or (), strict=True)
        return any(abs(a - b) > self.bound.mean for a, b in pairs)

    def _problem(self, moved: dict[str, tuple[float, float]], gap: Gap) -> str:
        engine = f"engine {self.config.engine_type!r}"
        for name, fractions in moved.items():
            blind = [who for who, fraction in zip(("the trainer", engine), fractions, strict=True) if not fraction]
            if blind:
                verb = "do" if len(blind) > 1 else "does"
                return (
                    f"{' and '.join(blind)} {verb} not see the images: with {name} in the place of the true one no log-prob of "
                    f"{len(self.prompts)} answers moves by more than {self.bound.mean:g} nats; verify_sync_every 0 leaves this check out"
                )
        if gap.within(self.bound):
            return ""
        return (
            f"{engine} and the trainer differ by {gap.mean:.3g} nats in the mean, {gap.largest:.3g} at most, on prompts with images "
            f"(rounding explains {self.bound.mean:g} and {self.bound.largest:g}): one of them gets other images, or in another order"
        )


def _like(one: Any, new: Any) -> Any:
    """What `new` shows, with as many frames as `one` has, each of its size."""
    frames = cycle(frames_of(new))
    return each_frame(one, lambda frame: next(frames).resize(frame.size))
