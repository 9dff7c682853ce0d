"""What a saved model takes over from the folder that it came from: its dtypes, and every file beside the weights."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from lightrft.config.model_folder import QUANTISED_FILES, plain_headers
from lightrft.config.tensor_headers import has_safetensors
from lightrft.weights.torch_files import headers_of, torch_tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt", ".index.json")
WRITTEN_ANEW = ("config.json", "adapter_config.json", "README.md", *QUANTISED_FILES)


@dataclass(frozen=True)
class SourceFolder:
    """`folder` None: the model came from nowhere, and nothing is taken over. `config` is the folder's config.json as it is."""

    folder: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    def dtype_of(self, name: str) -> torch.dtype | None:
        """On disk, once dequantised, of the tensor of that name; of another, that of most tensors; None where nothing is known."""
        return self.dtypes.get(name, self.most_common)

    @property
    def most_common(self) -> torch.dtype | None:
        """Of most of the folder's floating tensors."""
        found = Counter(self.dtypes.values()).most_common(1)
        return found[0][0] if found else None

    def copy_files(self, target: Path) -> None:
        """Tokenizer, chat template, processor, generation_config.json and the repository's own code, byte by byte."""
        if self.folder is None:
            return
        beside = [p for p in self.folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.name not in WRITTEN_ANEW]
        code = [p for p in self.folder.glob("*/**/*.py") if not any(part.startswith(".") for part in p.relative_to(self.folder).parts)]
        for path in [*(p for p in beside if not p.name.endswith(WEIGHTS)), *code]:
            to = target / path.relative_to(self.folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


def source_folder(name: str | Path | None) -> SourceFolder:
    """Of a folder, or a hub name whose files are on this machine; nothing is downloaded."""
    folder = _local(name)
    if folder is None or not (folder / "config.json").is_file():
        return SourceFolder()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    headers = plain_headers(folder, config) if has_safetensors(folder) else headers_of(torch_tensors(folder), folder)
    return SourceFolder(folder, config, {name: DTYPES[h.dtype] for name, h in headers.items() if h.dtype in DTYPES})


def _local(name: str | Path | None) -> Path | None:
    if not name:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (OSError, ValueError):  # not a hub name, or none of its files are here
        return None
