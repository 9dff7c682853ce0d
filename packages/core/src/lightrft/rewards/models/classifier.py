"""A reward model: a sequence classifier with one output, asked in its own template, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from lightrft.distributed.collectives import gather_objects
from lightrft.errors import RewardError
from lightrft.observe.warning_names import WarningName
from lightrft.observe.warnings_log import Warnings
from lightrft.rewards.models.template import Rendering, template_fault
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import Sample

SHOWN = 8
"""Texts of the first call that are looked at for a wrong template."""


class TextRows(Protocol):
    """How texts stand in rows of the model's input."""

    def parts(self, texts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The places of the texts of each pass. Local."""
        ...

    def scores(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """One number for each text of a pass, which may have none. Collective where the model is sharded."""
        ...


@dataclass
class RewardModel:
    """`model` is what `strategy.prepare_model` returned of a sequence classifier with one label, `tokenizer` its own; `rows` asks it.

    Its input is written anew: in the tokenizer's chat template where it has one, else prompt and completion as they are. Texts of more than
    `max_len` tokens lose their beginning.
    """

    name: str
    model: Any
    tokenizer: Any
    strategy: StrategyBase
    rendering: Rendering
    rows: TextRows
    max_len: int = 0
    _asked: bool = field(default=False, init=False)
    _found: dict[WarningName, str] = field(default_factory=dict, init=False)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """One number for each sample of this rank, in order. Collective: a rank without samples takes part in every pass.

        Raises:
            RewardError: a number is not finite; on this rank alone.
        """
        texts = [self.rendering.text(sample, tokenizer=self.tokenizer) for sample in samples]
        self._look(texts)
        ids = self._tokenized(texts)
        parts = self.rows.parts(ids)
        passes: int = self.strategy.all_reduce(len(parts), "max")
        found = [0.0] * len(ids)
        with self.strategy.on_device(self.model):
            for part in parts + [[] for _ in range(passes - len(parts))]:
                for index, value in zip(part, self.rows.scores([ids[index] for index in part]), strict=True):
                    found[index] = value
        return found

    def tell(self, warnings: Warnings) -> None:
        """Says once what was found wrong with the first texts. Local; the same on every rank."""
        for name, text in self._found.items():
            warnings.say(name, text)
        self._found = {}

    def _tokenized(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        rows: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=not self.tokenizer.chat_template)["input_ids"]
        return [row[-self.max_len :] if self.max_len else row for row in rows]

    def _look(self, texts: Sequence[str]) -> None:
        if self._asked:
            return
        self._asked = True
        mine = template_fault(texts[:SHOWN], tokenizer=self.tokenizer, chats=self.rendering.chats)
        first = next((fault for fault in gather_objects(mine, group=self.strategy.world.group) if fault), "")
        if first:
            self._found["reward_model_template"] = f"reward model {self.name!r} on the wrong template: {first}"


def padding_id(config: Any, tokenizer: Any) -> int:
    """A token to pad with that no text ends with: transformers takes the last token that is not it as the end of a text.

    Raises:
        RewardError: the vocabulary has no such token.
    """
    taken = {tokenizer.eos_token_id, tokenizer.sep_token_id}
    size = int(config.get_text_config().vocab_size)
    for candidate in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, size - 1):
        if candidate is not None and candidate not in taken and 0 <= candidate < size:
            return int(candidate)
    raise RewardError("the reward model's tokenizer has no token to pad with; give it a pad token that is not its end of sequence")


def check_labels(config: Any, *, name: str) -> None:
    """Raises RewardError where the model gives more or less than one number."""
    if config.num_labels != 1:
        raise RewardError(
            f"reward model {name!r} has {config.num_labels} outputs (num_labels), expected 1: a sequence classifier that gives one score"
        )
