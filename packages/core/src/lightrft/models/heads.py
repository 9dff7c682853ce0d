"""The output layer that gives log-probabilities of labels instead of logits where it is asked to, inside the model's own forward pass.

Backends gather a sharded weight for the forward pass of the module that holds it, and again when the gradient of the module's result
arrives. So the log-probs are computed where the logits would be. What the layer returns for the model to go on with is a *marker*, a few
numbers that carry no information about the text: whatever the model does to its logits (soft-capping, scaling) happens to the marker, and
is compared with what was done to each chunk of logits. The columns leave by the side, and autograd is told that the marker belongs to
them, so that the backend's hooks on it run before the layer's backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from lightrft.errors import ModelError
from lightrft.models.linear_logprob import Terms, linear_logprob
from lightrft.models.logprob_spec import LogitTransform, LogprobColumns, LogprobSpec

Tensor = torch.Tensor
T = TypeVar("T")

MARKER = (1.0, -3.0, 40.0, -700.0)
"""Both ends of a soft cap and its middle."""

TOLERANCE = 1e-5

MULTIPLIED = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVIDED = ("logits_scaling",)
NOT_DIVIDED = {"hyperclovax": "multiplied", "minicpm3": "inside"}
"""Fields of configurations for the factor of the logits; families that mean another thing by the last ("inside": the hidden states)."""


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
    chunk_size: int | None = None
    """As the last three of `LogprobSpec`."""


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

    def __init__(self, transform: LogitTransform) -> None:
        self.transform = transform
        self.verified = False
        self.request: LabelRequest | None = None
        self.columns: LogprobColumns | None = None

    def rows_of(self, hidden: Tensor) -> Tensor | None:
        """The requested hidden states [M, H]; None without a request."""
        return None if self.request is None else hidden.flatten(0, -2).index_select(0, self.request.rows)

    def answer(self, terms: Terms, bias: Tensor | None) -> Tensor:
        """Computes the columns; returns the marker."""
        assert self.request is not None
        marker = torch.tensor(MARKER, device=self.request.labels.device)[None, None]
        spec = LogprobSpec(
            temperatures=self.request.temperatures,
            entropy=self.request.entropy,
            transform=self.transform,
            chunk_size=self.request.chunk_size,
        )
        found = linear_logprob(terms, self.request.labels, spec=spec, bias=bias)
        attach: Any = _Attach.apply
        attached: Tensor
        attached, *columns = attach(marker, *found.all())
        self.columns = LogprobColumns.of(columns, count=len(found.logprobs))
        return attached


def make_logprob_head(model: nn.Module) -> Any:
    """Changes the output layer of `model` in place to one that `score_labels` can ask; returns the layer.

    The layer stays where it is, with the same parameters under the same names, tied ones too, and a backend's hooks: only its class
    changes. Adapters on it have to be there already.

    Raises:
        ModelError: the model has no output layer of its own, or one that is not linear.
    """
    owner: Any = next((module for module in model.modules() if hasattr(type(module), "get_output_embeddings")), None)
    head: Any = None if owner is None else owner.get_output_embeddings()
    if type(head) is nn.Linear:
        head.__class__ = LogprobHead
    elif hasattr(head, "base_layer"):
        from lightrft.models.lora_head import make_adapted_head

        make_adapted_head(head)
    else:
        found = "no output layer" if head is None else f"an output layer of class {type(head).__name__}"
        raise ModelError(f"{type(model).__name__} has {found}; log-probs need a torch.nn.Linear there: take a causal language model")
    head.scoring = _Scoring(transform_of(owner.config.get_text_config()))
    return head


def transform_of(config: Any) -> LogitTransform:
    """What a model of this (text) configuration does to its logits. A wrong guess is an error of the first pass."""
    scale = 1.0
    for name in MULTIPLIED:
        scale *= getattr(config, name, None) or 1.0
    for name in DIVIDED:
        factor = getattr(config, name, None) or 1.0
        how = NOT_DIVIDED.get(config.model_type.partition("_")[0], "divided")
        scale *= {"divided": 1 / factor, "multiplied": factor, "inside": 1.0}[how]
    return LogitTransform(scale=scale, softcap=getattr(config, "final_logit_softcapping", None))


def score_labels(model: Any, request: LabelRequest, **inputs: Any) -> LogprobColumns:
    """One forward pass of `model(**inputs)`, prepared by any strategy; columns [M], with gradients where grad is enabled.

    Collective where the model is sharded. The first call for a model makes its head, and verifies that nothing else is done to its logits.

    Raises:
        ModelError: as `make_logprob_head`, or the model does to its logits what its configuration does not say.
    """
    scoring = _scoring_of(model)
    scoring.request = request
    try:
        marker: Tensor = model(**inputs, use_cache=False).logits
        columns = scoring.columns
        assert columns is not None
    finally:
        scoring.request = scoring.columns = None
    if not scoring.verified:
        _verify(marker, scoring.transform, model)
        scoring.verified = True
    if not marker.requires_grad:
        return columns
    join: Any = _Join.apply
    return LogprobColumns.of(join(marker, *columns.all()), count=len(columns.logprobs))


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


def _verify(marker: Tensor, transform: LogitTransform, model: Any) -> None:
    """Raises ModelError where the model did to the marker something else than was done to the logits."""
    found = marker.detach().flatten().tolist()
    expected = transform(torch.tensor(MARKER)).tolist()
    same = len(found) == len(expected) and all(abs(f - e) <= TOLERANCE * abs(e) for f, e in zip(found, expected, strict=True))
    if not same or marker.dtype != torch.float32:
        known = ", ".join([*MULTIPLIED, *DIVIDED])
        raise ModelError(
            f"{type(model).__name__} turns the results {list(MARKER)} of its output layer into logits {found[:8]} of {marker.dtype}, "
            f"and its configuration says scale {transform.scale!r} and soft cap {transform.softcap!r}; log-probs are possible where a "
            f"model scales its logits by one of {known} and bounds them by final_logit_softcapping, or leaves them as they are"
        )


def _scoring_of(model: nn.Module) -> _Scoring:
    for module in model.modules():
        if isinstance(scoring := getattr(module, "scoring", None), _Scoring):
            return scoring
    made: _Scoring = make_logprob_head(model).scoring
    return made
