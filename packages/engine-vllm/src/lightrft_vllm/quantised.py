"""What vLLM makes of weights once they are loaded: each quantised tensor is compared, in that moment, with the one it was made from."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.weights.checksum import MODULUS, tensor_checksum, tensor_checksums
from lightrft.weights.fused_fingerprints import OwnChecksum

MADE = "_lightrft_made"
"""On a layer: by parameter, what was made of it at the last load; None until the next load has come to it."""

SLACK = 1.0 + 2.0**-10
"""Of a bound: the division by the scale and the product with it are rounded themselves."""


@dataclass(frozen=True)
class Made:
    """Of one parameter: the checksum of its values as they were loaded; that of the codes and scale that were made of them; what is wrong
    with these (empty: each code times its scale is within half a quantum of the value).
    """

    loaded: OwnChecksum
    held: tuple[int, int]
    problem: str


def watch_quantisation() -> None:
    """Before an engine that quantises is built, for the whole process, as every sync quantises again. Idempotent."""
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

    get_quantization_config("fp8")  # imports them all
    for kind in _kinds_of(QuantizeMethodBase):
        method = vars(kind).get("process_weights_after_loading")
        if method is not None and not hasattr(method, "_lightrft_watched"):
            kind.process_weights_after_loading = _watched(method)


def forget_what_was_made(model: torch.nn.Module) -> None:
    """Before new weights come: a layer that they never reach is a difference then."""
    for _, layer in model.named_modules():
        if hasattr(layer, MADE):
            setattr(layer, MADE, dict.fromkeys(getattr(layer, MADE)))


def read_made(model: torch.nn.Module) -> dict[str, OwnChecksum]:
    """By own name, the checksums of the values that the codes which the engine holds now were made of.

    Another number, which no weights have, where codes or scale are not those that were compared. Parameters whose codes cannot be read
    are left out. Local.
    """
    found = {}
    for name, layer in model.named_modules():
        for parameter, made in getattr(layer, MADE, {}).items():
            codes = getattr(layer, parameter)
            verified = made is not None and _held(codes, scale_of(layer, parameter)) == made.held
            found[f"{name}.{parameter}"] = made.loaded if verified else _nobodys(codes)
    return found


def quantisation_problems(model: torch.nn.Module) -> list[str]:
    """Of the last load, by own name: tensors that are not within half a quantum of what was loaded."""
    layers = ((name, getattr(layer, MADE, {})) for name, layer in model.named_modules())
    return [f"{name}.{key}: {made.problem}" for name, each in layers for key, made in each.items() if made is not None and made.problem]


def scale_of(layer: torch.nn.Module, parameter: str) -> torch.Tensor | None:
    """What the codes of `parameter` are multiplied by, under the names that vLLM has for it."""
    found = (getattr(layer, f"{parameter}_{word}", None) for word in ("scale", "scale_inv"))
    return next((scale for scale in found if isinstance(scale, torch.Tensor)), None)


@torch.no_grad()
def quantum_error(loaded: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, *, block: tuple[int, int] | None = None) -> float | None:
    """The largest |code x scale - value|, in units of half the distance of codes there: above 1 it is no rounding. None: another layout.

    Args:
        loaded: values [N, K], or [E, N, K] of E experts.
        codes: FP8 or int8 of that shape, or [K, N].
        scale: one; or N, of a row each; or one for each block of `block`; with E in front for experts.
    """
    if loaded.dim() == 3:
        if len(scale) != len(loaded) or len(codes) != len(loaded):
            return None
        each = [quantum_error(*three, block=block) for three in zip(loaded, codes, scale, strict=True)]
        return None if None in each else max(error for error in each if error is not None)
    wide = _spread(scale, loaded.shape, block)
    ways = [way for way in (codes, codes.t()) if way.shape == loaded.shape] if codes.dim() == loaded.dim() == 2 else []
    if wide is None or not ways or quantum(codes.dtype) is None:
        return None
    return min(_error(loaded, way, wide) for way in ways)  # a square one lies in either


def quantum(dtype: torch.dtype) -> tuple[float, float] | None:
    """Half the distance of neighbouring codes: relative to the value, and at least this much of the scale. None: no codes of this kind."""
    if dtype == torch.int8:
        return 0.0, 0.5
    if dtype.is_floating_point and dtype.itemsize == 1:
        info = torch.finfo(dtype)
        return info.eps / 2, info.tiny * info.eps / 2
    return None


# ---- parts -------------------------------------------------------------------------------------------------------------------------------


def _watched(method: Any) -> Any:
    @functools.wraps(method)
    def process(self: Any, layer: Any, *args: Any, **options: Any) -> Any:
        if getattr(layer, "_lightrft_busy", False):  # a method that calls that of its base
            return method(self, layer, *args, **options)
        loaded = {name: p.data for name, p in layer.named_parameters(recurse=False) if _is_loaded(p)}
        layer._lightrft_busy = True
        try:
            answer = method(self, layer, *args, **options)
        finally:
            del layer._lightrft_busy
        made = {name: _made(layer, name, values) for name, values in loaded.items() if _was_quantised(layer, name, values)}
        if made:
            setattr(layer, MADE, getattr(layer, MADE, {}) | {name: each for name, each in made.items() if each is not None})
        return answer

    process._lightrft_watched = True  # type: ignore[attr-defined]
    return process


def _kinds_of(base: Any) -> Iterator[Any]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds_of(kind)


def _is_loaded(parameter: torch.Tensor) -> bool:
    return parameter.is_floating_point() and parameter.dtype.itemsize > 1 and parameter.dim() > 1 and not parameter.is_meta


def _was_quantised(layer: torch.nn.Module, name: str, values: torch.Tensor) -> bool:
    after = getattr(layer, name, None)
    return isinstance(after, torch.Tensor) and after.dtype != values.dtype


def _made(layer: torch.nn.Module, name: str, values: torch.Tensor) -> Made | None:
    """None where its layout is not known."""
    codes, scale = getattr(layer, name).data, scale_of(layer, name)
    block = getattr(layer, "weight_block_size", None)
    error = None if scale is None else quantum_error(values, codes, scale.data, block=tuple(block) if block else None)
    if error is None:
        return None
    problem = "" if error <= SLACK else f"is {error:.3g} times half a quantum from what was loaded"
    stacked = values.dim() == 3
    loaded = OwnChecksum.of_parts(tensor_checksums(list(values.unbind(0)) if stacked else [values]), values.numel(), stacked=stacked)
    return Made(loaded, _held(codes, scale), problem)


def _nobodys(codes: torch.Tensor) -> OwnChecksum:
    """Checksums that no weights have."""
    return OwnChecksum(1, 0, codes.numel(), ((1, 0),) * len(codes) if codes.dim() == 3 else ())


def _held(codes: torch.Tensor, scale: torch.Tensor | None) -> tuple[int, int]:
    checksums = [tensor_checksum(codes.data.view(torch.uint8)), tensor_checksum(scale.data) if scale is not None else (0, 0)]
    return sum(bits for bits, _ in checksums) % MODULUS, sum(squares for _, squares in checksums) % MODULUS


def _spread(scale: torch.Tensor, shape: torch.Size, block: tuple[int, int] | None) -> torch.Tensor | None:
    """The scale so that it broadcasts to [N, K]."""
    rows, columns = shape
    values = scale.float()
    if values.numel() == 1:
        return values.reshape(1, 1)
    if block is not None and tuple(values.shape) == (-(-rows // block[0]), -(-columns // block[1])):
        return values.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return values.reshape(rows, 1) if values.numel() == rows else None


def _error(loaded: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> float:
    halves = quantum(codes.dtype)
    assert halves is not None
    values = loaded.float()
    bound = torch.maximum(values.abs() * halves[0], scale * halves[1])
    error = (codes.float() * scale - values).abs()
    return float(torch.where(error == 0, error, error / bound).nan_to_num(nan=float("inf")).max())
