"""A quantised folder becomes a plain one: packed numbers times their scales, tensor by tensor; everything else as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightrft.config.model_folder import read_json
from lightrft.config.quantised import Scaled, quantisation, settings_of, without_quantisation
from lightrft.config.tensor_headers import BITS, INDEX, WHOLE, TensorHeader, tensor_headers
from lightrft.strategy.source_folder import DTYPES, source_folder

SHARD_BYTES = 4 * 2**30
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of E2M1, by their four bits (OCP Microscaling Formats 1.0)."""
EXPONENT_OF_ONE = 127
"""E8M0: a scale is 2 to the power of its byte less this."""


def is_quantised(path: Path) -> bool:
    """Whether a folder's config.json says so."""
    file = path.expanduser() / "config.json"
    return file.is_file() and settings_of(read_json(file)) is not None


def dequantise(folder: Path, target: Path) -> str:
    """Writes the plain model of a folder that `config.quantised` knows as `target`; returns what was done, in words.

    A number is the packed one times its scale in float32, rounded once to the dtype that config.json names. At most one file of 4 GiB is
    held at a time. Tokenizer, chat template and the other files beside the weights come along.

    Raises:
        ValueError: the folder is not of that kind, or damaged.
    """
    config = read_json(folder / "config.json")
    known = quantisation(config)
    if known is None:
        raise ValueError(f"{str(folder)!r} is not quantised in a form that is dequantised here")
    headers = tensor_headers(folder)
    plain, sources = known.plain(headers)
    dtype = DTYPES[known.dtype]
    target.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        opened = {h.file: stack.enter_context(safe_open(h.file, framework="pt")) for h in {h.file: h for h in headers.values()}.values()}

        def read(name: str) -> torch.Tensor:
            found: torch.Tensor = opened[headers[name].file].get_tensor(name)
            return found

        _write(target, plain, lambda name: multiplied(sources[name], read, dtype) if name in sources else read(name))
    source_folder(folder).copy_files(target)
    (target / "config.json").write_text(json.dumps(without_quantisation(config), indent=2), encoding="utf-8")
    return f"dequantised {str(folder)!r} ({known.method}, {len(sources)} tensors) to {str(dtype).removeprefix('torch.')}: {str(target)!r}"


def multiplied(source: Scaled, read: Callable[[str], torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The plain tensor in `dtype`, from the packed one and its scales, which `read` gives by name."""
    packed, scales = read(source.values), read(source.scales)
    if source.four_bits:
        return _four_bits(packed, scales, dtype)
    values, scales = packed.float(), scales.float()
    if source.block is None or scales.numel() == 1:
        return (values * scales.reshape(())).to(dtype)
    for dim, size in zip((-2, -1), source.block, strict=True):
        wanted = values.shape[dim]
        scales = scales.repeat_interleave(min(size, wanted), dim).narrow(dim, 0, wanted)
    return (values * scales).to(dtype)


def _four_bits(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """MXFP4 as GPT-OSS stores it: [E, rows, G, 16] bytes and [E, rows, G] exponents to [E, G * 32, rows]; the lower bits come first."""
    values = torch.tensor(FP4)[torch.stack([blocks & 15, blocks >> 4], dim=-1).int()].flatten(-2)
    plain = torch.ldexp(values, scales.int()[..., None] - EXPONENT_OF_ONE).flatten(-2)
    return plain.transpose(-1, -2).to(dtype).contiguous()


def _write(target: Path, headers: Mapping[str, TensorHeader], tensor_of: Callable[[str], torch.Tensor]) -> None:
    """The tensors in files of at most 4 GiB, or of one larger tensor, with an index where they are several."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, header in headers.items():
        size = math.prod(header.shape) * BITS[header.dtype] // 8
        if shards[-1] and held + size > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    names = [WHOLE] if len(shards) == 1 else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, shard in zip(names, shards, strict=True):
        save_file({name: tensor_of(name) for name in shard}, target / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(math.prod(h.shape) * BITS[h.dtype] // 8 for h in headers.values())
        (target / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2), encoding="utf-8")
