"""The output layer with low-rank adapters on it: each adapter is a further pair of hidden states and weight. Imports peft."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as AdaptedLinear
from torch import nn

from lightrft.errors import ModelError
from lightrft.models.heads import WeightedLinear

Tensor = torch.Tensor


class AdaptedLogprobHead(AdaptedLinear):
    """As `LogprobHead`. The parameters are used inside the forward passes of the layers that hold them, one within the other."""

    scoring: Any

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = self.scoring.rows_of(x)
        if rows is None:
            return super().forward(x, *args, **kwargs)
        active = [] if self.disable_adapters or self.merged else [name for name in self.active_adapters if name in self.lora_A]
        return self.base_layer(rows, show_to=lambda weight, bias: self._with_adapters(active, [(rows, weight)], bias))

    def _with_adapters(self, names: list[str], terms: list[tuple[Tensor, Tensor]], bias: Tensor | None) -> Tensor:
        if not names:
            marker: Tensor = self.scoring.answer(terms, bias)
            return marker
        name, *rest = names
        down: Any = self.lora_A[name]
        inner = down(self.lora_dropout[name](self._cast_input_dtype(terms[0][0], down.weight.dtype))) * self.scaling[name]
        up: Any = self.lora_B[name]
        result: Tensor = up(inner, show_to=lambda weight, _: self._with_adapters(rest, [*terms, (inner, weight)], bias))
        return result


def make_adapted_head(head: Any) -> None:
    """In place.

    Raises:
        ModelError: another kind of adapter than plain LoRA on a linear layer.
    """
    if type(head) is not AdaptedLinear or type(head.base_layer) is not nn.Linear or head.lora_variant:
        raise ModelError(f"the output layer has an adapter of class {type(head).__name__}; log-probs need plain LoRA on a torch.nn.Linear")
    head.base_layer.__class__ = WeightedLinear
    for up in head.lora_B.values():
        up.__class__ = WeightedLinear
    head.__class__ = AdaptedLogprobHead
