"""The positions that a model itself gives to prompts with images (M-RoPE: time, height and width), asked for one sequence alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lightrft.batch.images import ImageInputs, Positions


def image_positions(model: torch.nn.Module) -> Positions | None:
    """What `get_rope_index`, transformers' name for it, says on the CPU; None where the model has none and counts from 0."""
    owner: Any = next((module for module in model.modules() if hasattr(type(module), "get_rope_index")), None)
    return None if owner is None else partial(_asked, owner.get_rope_index)


def _asked(get_rope_index: Callable[..., Any], ids: torch.Tensor, images: ImageInputs) -> torch.Tensor:
    """int64 [A, 1, n]: A axes of the ids [n]; what follows the prompt is text. The model is given what its function names."""
    marks = {name: torch.nn.functional.pad(marks, (0, len(ids) - len(marks)))[None] for name, marks in images.marks.items()}
    named = inspect.signature(get_rope_index).parameters
    told = {name: value for name, value in {**marks, **images.features}.items() if name in named}
    found: torch.Tensor = get_rope_index(input_ids=ids[None], **told)[0]
    return found
