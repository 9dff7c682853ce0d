"""Quantised folders whose weights are exactly packed numbers times stored scales: which those are, and what their plain tensors look like.

Three formats are of that kind: FP8 with scales for blocks (DeepSeek-V3, Qwen3-FP8), MXFP4 (GPT-OSS), and compressed-tensors of 8 bits
without zero points. From config.json and headers alone; `models.dequantise` computes the numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightrft.config.tensor_headers import TensorHeader

KEYS = ("quantization_config", "compression_config")
"""Of config.json; the second is that of older compressed-tensors, which vLLM reads."""
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
ALL = 2**62
"""More columns than any matrix has: a block of a whole row."""
PER_BYTE = 2
"""Four-bit numbers in a byte of MXFP4."""
OF_ACTIVATIONS = re.compile(r"\.(activation_scale|input_scale)$")
"""Scales of what flows through a layer: no part of its weights."""
SCALES = ("F32", "BF16", "F16", "F8_E8M0")
COMPRESSED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")


@dataclass(frozen=True)
class Scaled:
    """A plain tensor is what `values` holds times `scales`; `block` rows and columns have one scale, with None all of them."""

    values: str
    scales: str
    block: tuple[int, int] | None
    four_bits: bool = False


@dataclass(frozen=True)
class Quantisation:
    """How a folder's tensors become plain ones, in `dtype` (a header's word): that of its config.json."""

    method: str
    dtype: str
    block: tuple[int, int] | None
    packed: tuple[str, ...]
    """Dtypes of packed numbers."""

    def plain(self, headers: Mapping[str, TensorHeader]) -> tuple[dict[str, TensorHeader], dict[str, Scaled]]:
        """Headers as they are once dequantised, and where the numbers of those come from that are packed.

        Raises:
            ValueError: packed numbers without scales, scales that do not fit, or nothing packed.
        """
        found: dict[str, TensorHeader] = {}
        sources: dict[str, Scaled] = {}
        for name, header in headers.items():
            if OF_ACTIVATIONS.search(name):
                continue
            source = self._source(name, header, headers)
            if source is None:
                found[name] = header
            else:
                plain = name.removesuffix("_blocks")
                sources[plain] = source
                found[plain] = replace(header, dtype=self.dtype, shape=self._shape(name, header, headers[source.scales]))
        if not sources:
            raise ValueError(
                f"the model is quantised ({self.method}, says config.json), and none of its tensors is; take quantization_config out of "
                "config.json, or copy the folder again"
            )
        return {name: h for name, h in found.items() if name not in {s.scales for s in sources.values()}}, sources

    def _source(self, name: str, header: TensorHeader, headers: Mapping[str, TensorHeader]) -> Scaled | None:
        if self.method == "mxfp4":
            if not name.endswith("_blocks"):
                return None
            scales = name.removesuffix("_blocks") + "_scales"
        else:
            if header.dtype not in self.packed or name.endswith(("_scale_inv", "_scale")):
                return None
            scales = name + ("_scale_inv" if self.method == "fp8" else "_scale")
        if scales not in headers:
            raise ValueError(f"the model is quantised ({self.method}), and its files have no {scales} for {name}; copy the folder again")
        return Scaled(name, scales, self.block, four_bits=self.method == "mxfp4")

    def _shape(self, name: str, header: TensorHeader, scales: TensorHeader) -> tuple[int, ...]:
        shape, grid = header.shape, scales.shape
        fits = math.prod(grid) == 1
        if self.method == "mxfp4":
            fits = len(shape) >= 3 and shape[:-1] == grid and header.dtype == scales.dtype == "U8"
            shape = (*shape[:-3], shape[-2] * shape[-1] * PER_BYTE, shape[-3]) if fits else shape
        elif self.block is not None and len(shape) >= 2:
            rows, columns = (math.ceil(size / block) for size, block in zip(shape[-2:], self.block, strict=True))
            fits = fits or grid == (*shape[:-2], rows, columns)
        if not fits or (scales.dtype not in SCALES and self.method != "mxfp4"):
            raise ValueError(
                f"the model is quantised ({self.method}), and the scales of {name} {list(header.shape)} are {scales.dtype} {list(grid)}, "
                f"which is not what its config.json says; copy the folder again"
            )
        return shape


def settings_of(config: Mapping[str, Any]) -> Any:
    """What config.json says of quantisation: an object where it is as it should be, None where it says nothing."""
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    return next((found for part in (config, inner) for key in KEYS if (found := part.get(key))), None)


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the dequantised folder; it names the dtype."""
    known = quantisation(config)
    plain = {key: value for key, value in config.items() if key not in KEYS}
    if isinstance(text := config.get("text_config"), dict):
        plain["text_config"] = {key: value for key, value in text.items() if key not in KEYS}
    names = {word: name for name, word in DTYPES.items()}
    return plain if known is None or {"dtype", "torch_dtype"} & plain.keys() else plain | {"dtype": names[known.dtype]}


def quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """How the folder of a config.json is dequantised; None where its weights are not exactly numbers times scales, or not quantised."""
    settings = settings_of(config)
    if not isinstance(settings, dict):
        return None
    text = config.get("text_config")
    named = [c.get(key) for c in (config, text if isinstance(text, dict) else {}) for key in ("dtype", "torch_dtype")]
    dtype = DTYPES.get(next((name for name in named if isinstance(name, str)), "bfloat16"))
    method = settings.get("quant_method")
    if dtype is None:
        return None
    if method == "mxfp4" and config.get("model_type") == "gpt_oss":  # which stores these tensors transposed
        return Quantisation("mxfp4", dtype, (1, 32), ("U8",))
    if method == "fp8" and settings.get("fmt", "e4m3") in ("e4m3", "float8_e4m3fn"):
        block = _pair(settings.get("weight_block_size"))
        return Quantisation("fp8", dtype, block, ("F8_E4M3",))
    if method == "compressed-tensors":
        return _compressed(settings, dtype)
    return None


def _compressed(settings: Mapping[str, Any], dtype: str) -> Quantisation | None:
    groups = settings.get("config_groups")
    more = [settings.get(key) for key in ("kv_cache_scheme", "transform_config")]
    sparse = (settings.get("sparsity_config") or {}).get("format", "dense") != "dense"
    if not isinstance(groups, dict) or not groups or any(more) or sparse or settings.get("quantization_status") != "compressed":
        return None
    blocks = set()
    for group in groups.values():
        weights = group.get("weights") or {}
        if (group.get("format") or settings.get("format")) not in COMPRESSED_FORMATS or weights.get("num_bits") != 8:
            return None
        if not weights.get("symmetric", True) or weights.get("actorder"):
            return None
        blocks.add((weights.get("strategy"), weights.get("group_size"), _pair(weights.get("block_structure"))))
    if len(blocks) > 1:
        return None
    [(strategy, size, structure)] = blocks
    known = {"tensor": None, "channel": (1, ALL), "group": _pair([1, size]), "block": structure}
    if strategy not in known or (strategy != "tensor" and known[strategy] is None):
        return None
    return Quantisation("compressed-tensors", dtype, known[strategy], ("F8_E4M3", "I8"))


def _pair(value: Any) -> tuple[int, int] | None:
    sizes = tuple(value) if isinstance(value, (list, tuple)) else ()
    return (sizes[0], sizes[1]) if len(sizes) == 2 and all(isinstance(size, int) and size > 0 for size in sizes) else None
