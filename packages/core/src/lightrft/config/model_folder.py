"""Whether a path can be a model: one rule for actor, critic and reward models, from names, JSON and safetensors headers alone.

What only transformers knows (model types, shapes, tokenizers) is asked in `models.folder_check`.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightrft.config.quantised import KEYS, quantisation, settings_of
from lightrft.config.tensor_headers import INDEX, WHOLE, TensorHeader, has_safetensors, tensor_headers

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
JSON_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")
QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
QUANTISED_NAMES = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_scale(_inv|_2)?|weight_zero_point|SCB|absmax|quant_map|quant_state.*)$"
)
FLOATS = ("F64", "F32", "F16", "BF16")
PLAIN_DTYPES = (*FLOATS, "BOOL", "U8", "I64", "I32")
"""Of tensors that are no matrices: positions are whole numbers, and masks of older versions are of bytes."""
WRITTEN = "give a folder written by save_pretrained"
DEQUANTISED = (
    "training dequantises model_name_or_path, nothing else does: give the model that it was made from, or the folder base/ of a run that "
    "trained it"
)
UNQUANTISED = "give the model that it was made from, or a copy in float32, bfloat16 or float16"


def model_path_problem(
    name: str,
    path: str,
    *,
    trust_remote_code: bool = False,
    tokenizer: bool = False,
    dequantises: bool = False,
    written: str | None = None,
) -> str:
    """What is wrong with the model at `path`, in one line that begins with the setting `name`; empty where nothing is found.

    A hub name passes: its files are looked at once they are here. `tokenizer` asks for one in the folder. `dequantises`: the caller
    makes a plain folder (`models.dequantise`) where one can be made exactly. `written`: the whole value of the setting, where it is more
    than the path.
    """
    folder, asked = Path(path).expanduser(), f"{name}={written or path!r}"
    if folder.is_dir():
        found = next(_folder_problems(folder, trust_remote_code=trust_remote_code, tokenizer=tokenizer, dequantises=dequantises), "")
        return f"{asked}: {found}" if found else ""
    if folder.is_file():
        return f"{asked} is a file; {WRITTEN}"
    if not HUB_NAME.fullmatch(path):
        return f"{asked}: no such folder, and not a hub name of the form owner/name"
    return ""


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file. Raises ValueError in words that follow the folder's name."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        reason = "it is empty" if file.is_file() and not file.stat().st_size else f"{type(error).__name__}: {error}"
        raise ValueError(f"{file.name} is damaged: {' '.join(reason.split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} is damaged: it holds a {type(found).__name__}, expected an object")
    return found


def _folder_problems(folder: Path, *, trust_remote_code: bool, tokenizer: bool, dequantises: bool) -> Iterator[str]:
    """In the order in which they would be met; those after the first may follow from it."""
    if not (folder / "config.json").is_file():
        yield _without_config(folder)
        return
    try:
        config = read_json(folder / "config.json")
        if not (dequantises and quantisation(config)):
            yield from _quantised(folder, config)
        yield from _config(folder, config, trust_remote_code=trust_remote_code)
        yield from _weights(folder, config)
        for name in JSON_FILES:
            if (folder / name).is_file():
                read_json(folder / name)
    except (ValueError, OSError) as error:
        yield str(error)
    if tokenizer and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        yield "the folder has no tokenizer; save one there with tokenizer.save_pretrained"


def _without_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        alone = "the folder holds an adapter alone (adapter_config.json)"
        return f"{alone}; merge it into its base model with peft's merge_and_unload and save that"
    if any(folder.glob("*.gguf")):
        return f"the folder holds a GGUF file, which is quantised; {UNQUANTISED}"
    return f"the folder has no config.json; {WRITTEN}"


def _quantised(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    if settings := settings_of(config):
        method = settings.get("quant_method", settings.get("quant_type", "method not named")) if isinstance(settings, dict) else settings
        remedy = DEQUANTISED if quantisation(config) else UNQUANTISED
        yield f"the model is quantised ({method}, says config.json), and its tensors are not its weights; {remedy}"
    for name in QUANTISED_FILES:
        if (folder / name).is_file():
            yield f"the model is quantised (it has a {name}), and its tensors are not its weights; {UNQUANTISED}"


def _config(folder: Path, config: dict[str, Any], *, trust_remote_code: bool) -> Iterator[str]:
    if not isinstance(config.get("model_type"), str):
        yield f"config.json names no model_type (found {config.get('model_type')!r}); {WRITTEN}"
    for key in KEYS:
        if config.get(key) is not None and not config[key]:
            yield f"config.json has {key}={config[key]!r}, which names no quantisation, and transformers refuses it; take the entry out"
    if (folder / "adapter_config.json").is_file():
        yield (
            "adapter_config.json lies beside whole weights, and libraries differ in whether they add that adapter; move it away, or "
            "merge it with peft's merge_and_unload and save the result"
        )
    own = config.get("auto_map")
    if own is not None and not isinstance(own, dict):
        yield f"config.json is damaged: auto_map is {own!r}, expected names of classes"
        return
    for place in {str(value) for value in (own or {}).values() if isinstance(value, str)} if trust_remote_code else ():
        module = place.rpartition(".")[0]
        if "--" not in place and not (folder / f"{module}.py").is_file():
            yield f"config.json says that {place} is the model's own code, and {module}.py is missing; copy it too"


def _weights(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    if not has_safetensors(folder):
        yield from _other_weights(folder)
        return
    headers = plain_headers(folder, config)
    if not headers:
        yield f"{WHOLE} holds no tensor; {WRITTEN}"
    yield from quantised_tensors(headers)


def quantised_tensor(name: str, header: TensorHeader) -> str:
    """The sentence that refuses it."""
    return f"the weights are quantised ({name} is {header.dtype}), and would be read as plain numbers; {UNQUANTISED}"


def quantised_tensors(headers: Mapping[str, TensorHeader]) -> Iterator[str]:
    """Tensors whose name or dtype is that of packed numbers."""
    for name, header in headers.items():
        if QUANTISED_NAMES.search(name) or header.dtype not in PLAIN_DTYPES or _packed(name, header):
            yield quantised_tensor(name, header)


def plain_headers(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorHeader]:
    """Of the folder's tensors, as they are once dequantised where `config.quantised` knows how. Raises ValueError as `tensor_headers`."""
    known, headers = quantisation(config), tensor_headers(folder)
    return known.plain(headers)[0] if known else headers


def _packed(name: str, header: TensorHeader) -> bool:
    """Whether a matrix that every model multiplies with holds whole numbers; `models.folder_check` knows the others."""
    return name.endswith(".weight") and header.dtype not in FLOATS


def torch_files(folder: Path) -> list[Path]:
    """torch's own files that the weights are loaded from, whole, where it has no safetensors. Raises ValueError: a damaged index."""
    if (folder / BIN).is_file():
        return [folder / BIN]
    if not (folder / BIN_INDEX).is_file():
        return []
    known = read_json(folder / BIN_INDEX).get("weight_map")
    if not isinstance(known, dict) or not known or not all(isinstance(name, str) for name in known.values()):
        raise ValueError(f"{BIN_INDEX} is damaged: it has no weight_map from names to files")
    return [folder / name for name in sorted(set(known.values()))]


def _other_weights(folder: Path) -> Iterator[str]:
    """torch's own files; nothing else."""
    files = torch_files(folder)
    for file in files:
        if not file.is_file():
            yield f"{BIN_INDEX} names {file.name}, which is missing"
        elif not zipfile.is_zipfile(file):
            yield f"{file.name} is damaged, or of a torch before 1.6: {file.stat().st_size} bytes; save the model again as safetensors"
    if files:
        return
    named = sorted(path.name for path in folder.glob("*.safetensors"))
    if any(folder.glob("*.gguf")):
        yield f"the folder holds a GGUF file, which is quantised; {UNQUANTISED}"
    elif named:
        yield f"the folder has no weights that its files name: {', '.join(named[:3])}, but neither {WHOLE} nor {INDEX}; copy the index too"
    else:
        yield f"the folder has no weights; expected {WHOLE}, or {INDEX} and its files, beside config.json"
