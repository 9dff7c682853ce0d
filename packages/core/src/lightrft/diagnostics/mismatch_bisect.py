"""The cause of a disagreement of engine and trainer: small experiments, each with one thing changed; the first that explains the gap is
the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from lightrft.batch.collect import answers_of
from lightrft.batch.planning import Batching
from lightrft.data.prompts import Prompt
from lightrft.diagnostics.logprob_agreement import Change, Gap, ask, gap_between, score_changed
from lightrft.diagnostics.sync_probe import rotated
from lightrft.engine.filters import filter_logits
from lightrft.engine.rounding import HALF, Bound, bound_for
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import RequestOutput, SamplingParams

Cause = Literal[
    "none", "tokenizer", "stale_cache", "stale_weights", "temperature_or_filters", "positions_or_padding", "dtype", "parameter", "unknown"
]
NEW_TOKENS = 8
UNCHANGED = 1e-6
"""Nats; an engine that answers so after its weights changed still has the old ones."""


@dataclass(frozen=True)
class Experiment:
    """One comparison. `gap` None: something else than log-probs was compared, `note` says what was found."""

    name: str
    gap: Gap | None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """The cause, what shows it, and every experiment that was made."""

    cause: Cause
    detail: str
    experiments: tuple[Experiment, ...]


Finding = tuple[Cause, str] | None


@dataclass
class Bisector:
    """`actor` is prepared and its engine set up, with the checks of each sync switched off: a broken one has to get as far as to be asked.

    `nudge` changes the actor's weights (collective): an engine that kept older ones shows only then. `prompts` are the same on every rank
    and of different lengths. Methods are collective.
    """

    strategy: StrategyBase
    actor: torch.nn.Module
    tokenizer: Any
    prompts: Sequence[Prompt]
    nudge: Callable[[], None]
    sampling: SamplingParams
    micro_batch_size: int
    experiments: list[Experiment] = field(default_factory=list)

    def run(self) -> Verdict:
        """Gives the engine a changed actor and finds out why the two differ, if they do."""
        self.bound: Bound = bound_for(self.strategy.engine_dtype, device_type=self.strategy.world.device.type)
        self.asked = [list(prompt.token_ids) for prompt in self.prompts]
        self.fresh = rotated(self.asked)
        self.greedy = SamplingParams(temperature=0.0, max_new_tokens=min(NEW_TOKENS, self.sampling.max_new_tokens), ignore_eos=True)
        self.before = ask(self.strategy, self.asked, self.greedy)
        self.nudge()
        self.strategy.update_engine_weights(self.actor)
        self.after = ask(self.strategy, self.asked, self.greedy)
        self.outputs = ask(self.strategy, self.fresh, self.greedy)
        self.sampled = ask(self.strategy, self.fresh, self.sampling)
        self.gaps = {
            "asked": self._note("asked before and after a sync", self._gap(self.after)),
            "fresh": self._note("prompts never asked before", self._gap(self.outputs)),
            "sampled": self._note("sampled as the run does", self._gap(self.sampled)),
        }
        ids_differ = self._tokenizer()
        if all(self._ok(gap) for gap in self.gaps.values()):
            found: Finding = ids_differ or ("none", "engine and trainer agree within what rounding explains")
        else:
            found = self._explain() or ids_differ or ("unknown", "no experiment explains the gap")
        assert found is not None
        return Verdict(found[0], found[1], tuple(self.experiments))

    def _explain(self) -> Finding:
        for experiment in (self._stale_cache, self._stale_weights, self._conventions, self._padding, self._positions, self._weights):
            found = experiment()
            if found is not None:
                return found
        return None

    # ---- experiments, in their order -----------------------------------------------------------------------------------------------------

    def _tokenizer(self) -> Finding:
        """The engine's side is given texts, and says which ids it made of them."""
        texts = [prompt.text for prompt in self.prompts if prompt.text]
        outputs = self.strategy.gather_and_generate(self.greedy, all_prompts=texts, sleep_engine=False) if texts else []
        mine = [list(self.tokenizer(text)["input_ids"]) for text in texts]
        different = [text for text, ids, output in zip(texts, mine, outputs, strict=True) if ids != list(output.prompt_token_ids)]
        self._note("texts through both tokenizers", None, f"{len(different)} of {len(texts)} texts have other ids")
        if not different:
            return None
        return "tokenizer", f"the tokenizer of the engine's folder gives other ids for {different[0]!r} than the trainer's"

    def _stale_cache(self) -> Finding:
        if self._ok(self.gaps["asked"]):
            return None
        if self._ok(self.gaps["fresh"]):
            return "stale_cache", "prompts asked before the sync are off, prompts never asked agree: answers come from an older cache"
        self.strategy.reset_engine_cache()
        again = self._note("after another reset of the caches", self._gap(ask(self.strategy, self.asked, self.greedy)))
        return ("stale_cache", "one more reset of the caches makes the gap go away") if self._ok(again) else None

    def _stale_weights(self) -> Finding:
        unchanged = _alike(self.before, self.after)
        everywhere = self.strategy.all_reduce(int(unchanged), "min") == 1
        self._note("answers before and after the sync", None, "unchanged" if everywhere else "changed")
        if not everywhere:
            return None
        return "stale_weights", "the actor changed and was synced, and the engine still answers as before: it has the older weights"

    def _conventions(self) -> Finding:
        """The run's own sampling is off and greedy answers are not: the log-probs are of another distribution than the model's."""
        sampling = self.sampling
        if self._ok(self.gaps["sampled"]) or not self._ok(self.gaps["fresh"]):
            return None
        changes: dict[str, Change] = {
            f"trainer's logits divided by the temperature {sampling.temperature:g}": lambda logits: logits / sampling.temperature,
            "trainer's logits divided and filtered as sampled": lambda logits: filter_logits(logits / sampling.temperature, sampling),
            "trainer's logits filtered only": lambda logits: filter_logits(logits, sampling),
        }
        for name, change in changes.items():
            if self._ok(self._note(name, self._gap(self.sampled, change=change))):
                return "temperature_or_filters", f"with {name} the gap goes away; the engine's must be of the untempered, unfiltered model"
        return None

    def _padding(self) -> Finding:
        alone = [output for prompt in self.fresh for output in ask(self.strategy, [prompt], self.greedy)]
        if self._ok(self._note("engine asked one prompt at a time", self._gap(alone))):
            return "positions_or_padding", "prompts agree when each is asked alone: the engine's padding of a batch reaches its answers"
        if self._ok(self._note("trainer one row at a time, positions told", self._gap(self.outputs, size=1, positions=True))):
            return "positions_or_padding", "the engine agrees with the trainer's rows without padding: the trainer's batches are off"
        return None

    def _positions(self) -> Finding:
        first = self._note("first generated tokens alone", self._gap(self.outputs, last=1))
        later = self._note("later generated tokens", self._gap(self.outputs, first=1))
        if self._ok(first) and not self._ok(later):
            return "positions_or_padding", "each first token agrees and later ones do not: generated tokens get wrong positions or cache"
        return None

    def _weights(self) -> Finding:
        differing = self.strategy.differing_engine_weights(self.actor)
        said = "the engine gives no checksums" if differing is None else f"{len(differing)} tensors differ"
        self._note("checksums of each weight", None, said)
        if differing:
            for dtype in (torch.bfloat16, torch.float16):
                if self.strategy.differing_engine_weights(self.actor, rounded_to=dtype) == []:
                    self._note(f"checksums of the weights rounded to {dtype}", None, "all agree")
                    return "dtype", f"the engine's weights are the actor's, rounded to {dtype}; it should hold {self.strategy.engine_dtype}"
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            return "parameter", f"the engine's {differing[0]}{more} is not the actor's"
        return self._computed_in_half()

    def _computed_in_half(self) -> Finding:
        gap = self.gaps["fresh"]
        with torch.autocast(self.strategy.world.device.type, dtype=torch.bfloat16):
            half = self._note("trainer computing in bfloat16", self._gap(self.outputs))
        if gap.within(HALF) and half.mean < gap.mean:
            return "dtype", "the gap is one of bfloat16, and smaller against a trainer that computes in it: the engine's dtype is another"
        return None

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _gap(
        self,
        outputs: Sequence[RequestOutput],
        *,
        change: Change = lambda logits: logits,
        size: int | None = None,
        positions: bool = False,
        first: int = 0,
        last: int | None = None,
    ) -> Gap:
        answers = answers_of(outputs)
        mine = score_changed(
            self.actor,
            answers,
            strategy=self.strategy,
            batching=Batching(train_batch_size=1, micro_batch_size=size or self.micro_batch_size),
            change=change,
            positions=positions,
        )
        return gap_between(answers, mine, strategy=self.strategy, first=first, last=last)

    def _ok(self, gap: Gap) -> bool:
        return gap.within(self.bound)

    def _note(self, name: str, gap: Any, note: str = "") -> Any:
        self.experiments.append(Experiment(name, gap, note))
        return gap


def _alike(one: Sequence[RequestOutput], other: Sequence[RequestOutput]) -> bool:
    """Whether tokens are the same and log-probs too, within `UNCHANGED`."""
    a, b = answers_of(one), answers_of(other)
    same = torch.equal(a.offsets, b.offsets) and torch.equal(a.token_ids, b.token_ids)
    return same and bool(((a.engine_logprobs - b.engine_logprobs).abs() <= UNCHANGED).all())
