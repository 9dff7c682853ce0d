"""Parameters of a model that a run does not change: those whose names match a regular expression."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch

from lightrft.errors import ModelError, nearest
from lightrft.weights.buckets import tied_names
from lightrft.weights.lora_merge import weight_of

MAX_NAMED = 5


def freeze(model: torch.nn.Module, pattern: str) -> str:
    """Takes the parameters whose names `pattern` matches (`re.search`) out of those that are trained; returns a line that says so.

    In place, before a strategy wraps the model, which may be on the meta device. Names are those of `named_parameters()` of the model
    without adapters; an adapter has the name of the matrix that it adapts, so a matching matrix keeps its adapter's start, which is worth
    nothing. A tied parameter is frozen as a whole where any of its names matches.

    Raises:
        ModelError: `pattern` matches no trained parameter, or all of them.

    Example::

        >>> from lightrft.testing.tiny import tiny_causal_lm
        >>> freeze(tiny_causal_lm(tie=True), "lm_head")
        "freeze='lm_head': frozen 4,096 parameters, trained 74,176; model.embed_tokens.weight and lm_head.weight are one tensor"
    """
    parameters = dict(model.named_parameters())
    names = {name: tuple(map(weight_of, known)) for name, known in tied_names(model).items() if parameters[name].requires_grad}
    matched = [name for name, known in names.items() if any(re.search(pattern, one) for one in known)]
    kind = type(getattr(model, "get_base_model", lambda: model)()).__name__
    asked, known = f"freeze={pattern!r}", sorted({one for each in names.values() for one in each})
    if not matched:
        raise ModelError(f"{asked} matches no name of a parameter that {kind} trains ({_some(known)}){_nearest(pattern, known)}")
    if len(matched) == len(names):
        raise ModelError(f"{asked} matches every parameter that {kind} trains ({_some(known)}): nothing would be left; narrow it")
    for name in matched:
        parameters[name].requires_grad_(False)
    frozen = sum(p.numel() for p in parameters.values() if not p.requires_grad)
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    shared = [" and ".join(names[name]) + " are one tensor" for name in matched if len(names[name]) > 1]
    return "; ".join([f"{asked}: frozen {frozen:,} parameters, trained {trained:,}", *shared])


def _nearest(pattern: str, names: Iterable[str]) -> str:
    return nearest(pattern, dict.fromkeys(part for name in names for part in name.split(".")))


def _some(names: Sequence[str]) -> str:
    """A few of them, those of all layers once."""
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".0.", name) for name in names))
    step = max(1, -(-len(kinds) // MAX_NAMED))
    return ", ".join(kinds[::step]) + (", ..." if step > 1 else "")
