"""The output layer that gives log-probabilities of labels instead of logits where it is asked to, inside the model's own forward pass.

Backends gather a sharded weight for the forward pass of the module that holds it, and again when the gradient of the module's result
arrives. So the log-probs are computed where the logits would be. What the layer returns for the model to go on with is a *marker*, five
numbers that carry no information about the text: whatever the model does to its logits (soft-capping, scaling) happens to the marker, and
shows what has to be done to each chunk of logits. The columns leave by the side, and autograd is told that the marker belongs to them, so
that the backend's hooks on it run before the layer's backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from lightrft.errors import ModelError
from lightrft.models.linear_logprob import Terms, linear_logprob
from lightrft.models.logprob_spec import LogitTransform, LogprobColumns, LogprobSpec

Tensor = torch.Tensor
T = TypeVar("T")

MARKER = (1.0, 2.0**-12, -3.0, 40.0, 1e30)
"""Values that tell a scale and a soft cap apart from anything else: `_transform_from`."""


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """Which columns of which positions a forward pass should give.

    `rows` int64 [M]: positions of the flattened hidden states [N * L]; `labels` int64 [M]: the token that follows there. No other position
    reaches the vocabulary. M may be 0: the gradients are then zeros.
    """

    rows: Tensor
    labels: Tensor
    temperatures: tuple[float, ...] = (1.0,)
    entropy: bool = False


class WeightedLinear(nn.Linear):
    """A linear layer that also shows its parameters to a function, while a backend has them gathered."""

    def forward(self, input: Tensor, *, show_to: Callable[[Tensor, Tensor | None], T] | None = None) -> Tensor | T:
        return super().forward(input) if show_to is None else show_to(self.weight, self.bias)


class LogprobHead(WeightedLinear):
    """An output layer that answers `score_labels`; without a request it is the linear layer that it was."""

    scoring: _Scoring

    def forward(self, input: Tensor, **more: Any) -> Any:
        rows = self.scoring.rows_of(input)
        if rows is None:
            return super().forward(input, **more)
        return self.scoring.answer([(rows, self.weight)], self.bias)


class _Scoring:
    """What a head is asked at the moment, and what it knows about its model."""

    def __init__(self, *, chunk_size: int | None) -> None:
        self.chunk_size = chunk_size
        self.transform: LogitTransform | None = None
        self.request: LabelRequest | None = None
        self.columns: LogprobColumns | None = None

    def rows_of(self, hidden: Tensor) -> Tensor | None:
        """The requested hidden states [M, H]; None without a request."""
        return None if self.request is None else hidden.flatten(0, -2).index_select(0, self.request.rows)

    def answer(self, terms: Terms, bias: Tensor | None) -> Tensor:
        """Computes the columns; returns the marker."""
        assert self.request is not None
        marker = torch.tensor(MARKER, device=self.request.labels.device)[None, None]
        if self.transform is None:
            return marker
        spec = LogprobSpec(
            temperatures=self.request.temperatures,
            entropy=self.request.entropy,
            transform=self.transform,
            chunk_size=self.chunk_size,
        )
        found = linear_logprob(terms, self.request.labels, spec=spec, bias=bias)
        attach: Any = _Attach.apply
        attached: Tensor
        attached, *columns = attach(marker, *found.logprobs, *found.entropies)
        count = len(found.logprobs)
        self.columns = LogprobColumns(tuple(columns[:count]), tuple(columns[count:]))
        return attached


def make_logprob_head(model: nn.Module, *, chunk_size: int | None = None) -> nn.Module:
    """Changes the output layer of `model` in place, so that `score_labels` can ask it; returns the model.

    The layer stays where it is, with the same parameters under the same names, tied ones too; only its class changes. Before a strategy
    prepares the model, after adapters are added. `chunk_size` as in `LogprobSpec`.

    Raises:
        ModelError: the model has no output layer of its own, or one that is not linear.
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    head: Any = None if find is None else find()
    if type(head) is nn.Linear:
        head.__class__ = LogprobHead
    elif hasattr(head, "base_layer"):
        from lightrft.models.lora_head import make_adapted_head

        make_adapted_head(head)
    else:
        found = "no output layer" if head is None else f"an output layer of class {type(head).__name__}"
        raise ModelError(f"{type(model).__name__} has {found}; log-probs need a torch.nn.Linear there: take a causal language model")
    head.scoring = _Scoring(chunk_size=chunk_size)
    return model


def score_labels(model: Any, request: LabelRequest, **inputs: Any) -> LogprobColumns:
    """One forward pass of `model(**inputs)`, prepared by any strategy; columns [M], with gradients where grad is enabled.

    Collective where the model is sharded. The first call for a model makes a pass more, in which it learns what the model does to logits.

    Raises:
        ModelError: no `make_logprob_head` was called on the model, or it does to its logits what cannot be done chunk by chunk.
    """
    scoring = _scoring_of(model)
    scoring.request = request
    try:
        if scoring.transform is None:
            with torch.no_grad():
                scoring.transform = _transform_from(_marker(model, inputs), model)
        marker = _marker(model, inputs)
        columns = scoring.columns
        assert columns is not None
    finally:
        scoring.request = scoring.columns = None
    if not marker.requires_grad:
        return columns
    join: Any = _Join.apply
    joined = join(marker, *columns.logprobs, *columns.entropies)
    count = len(columns.logprobs)
    return replace(columns, logprobs=tuple(joined[:count]), entropies=tuple(joined[count:]))


class _Attach(torch.autograd.Function):
    """The identity on columns, which makes the marker a result of the same node: the node runs backward after the marker's own hooks."""

    @staticmethod
    def forward(ctx: Any, marker: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return marker.clone(), *(column.view_as(column) for column in columns)

    @staticmethod
    def backward(ctx: Any, _marker: Tensor | None, *columns: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *columns


class _Join(torch.autograd.Function):
    """The identity on columns; the marker gets a gradient of zeros, so that hooks on it run."""

    @staticmethod
    def forward(ctx: Any, marker: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.like = marker.new_zeros(marker.shape)
        return tuple(column.view_as(column) for column in columns)

    @staticmethod
    def backward(ctx: Any, *columns: Tensor | None) -> tuple[Tensor | None, ...]:
        return ctx.like, *columns


def _marker(model: Any, inputs: dict[str, Any]) -> Tensor:
    marker: Tensor = model(**inputs, use_cache=False).logits
    if marker.shape[-1] != len(MARKER) or marker.dtype != torch.float32:
        raise ModelError(
            f"{type(model).__name__}: its output layer's result came back as {marker.dtype} {list(marker.shape)} in place of "
            f"float32 [1, 1, {len(MARKER)}]: something behind the layer changes the logits' shape or type, such as an adapter that was "
            "added after make_logprob_head"
        )
    return marker


def _transform_from(marker: Tensor, model: Any) -> LogitTransform:
    """The scale and the soft cap that turn `MARKER` into what came back."""
    one, small, *_, limit = found = marker.flatten().tolist()
    capped = abs(limit) < MARKER[-1] / 1e6  # no scale is that small
    scale = small / MARKER[1] if capped else one
    near_one = 1e-5  # what float32 leaves of tanh
    transform = LogitTransform(scale=1.0 if abs(scale - 1.0) < near_one else scale, softcap=limit if capped else None)
    expected = transform(torch.tensor(MARKER)).tolist()
    if not all(abs(f - e) <= near_one * abs(e) for f, e in zip(found, expected, strict=True)):
        raise ModelError(
            f"{type(model).__name__} turns the results {list(MARKER)} of its output layer into the logits {found}; log-probs are possible "
            "where a model scales its logits and bounds them by tanh, or leaves them as they are"
        )
    return transform


def _scoring_of(model: nn.Module) -> _Scoring:
    for module in model.modules():
        if isinstance(scoring := getattr(module, "scoring", None), _Scoring):
            return scoring
    raise ModelError(f"{type(model).__name__} has no head for log-probs; call make_logprob_head before the strategy prepares it")
