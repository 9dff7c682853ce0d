"""DCP's files with an index in JSON in place of its pickled `.metadata`: nothing in a checkpoint is unpickled.

torch's own reader calls `pickle.load` on `.metadata`, which runs what the file says. Here the index holds names, dtypes, sizes and places
only; each tensor itself is read by `torch.load(..., weights_only=True)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.metadata import TensorProperties as Properties
from torch.distributed.checkpoint.storage import WriteResult

from lightrft.errors import CheckpointError

INDEX = "tensors.json"
DTYPES = {
    name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


@dataclass(frozen=True)
class Place:
    """Where the bytes of one chunk are; with the attributes that torch's reader asks for."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: tuple[str, ...] = ()


class JsonIndexWriter(FileSystemWriter):
    """Writes the tensors as torch does, and their index as JSON. Tensors only."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called on rank 0 with what all ranks wrote."""
        places = {(one.index.fqn, one.index.offset): one.storage_data for rank in results for one in rank}
        tensors = {}
        for name, about in metadata.state_dict_metadata.items():
            assert isinstance(about, TensorStorageMetadata), name
            chunks = [_chunk(chunk, places[name, chunk.offsets]) for chunk in about.chunks]
            tensors[name] = {"dtype": str(about.properties.dtype).removeprefix("torch."), "size": list(about.size), "chunks": chunks}
        (Path(self.path) / INDEX).write_text(json.dumps(tensors), encoding="utf-8")


class JsonIndexReader(FileSystemReader):
    """Reads what `JsonIndexWriter` wrote."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, checked value by value.

        Raises:
            CheckpointError: it is missing, or not such an index.
        """
        path = Path(self.path) / INDEX
        places: dict[MetadataIndex, Place] = {}
        tensors: dict[str, TensorStorageMetadata] = {}
        try:
            for name, about in json.loads(path.read_text(encoding="utf-8")).items():
                tensors[name] = _tensor(about)
                for chunk, saved in zip(tensors[name].chunks, about["chunks"], strict=True):
                    places[MetadataIndex(name, chunk.offsets)] = _place(saved)
        except OSError as error:
            raise CheckpointError(
                f"{str(path)!r} cannot be read: {error.strerror}; it was saved by another version, or is damaged"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{str(path)!r} is damaged: {type(error).__name__}: {error}") from error
        return Metadata(state_dict_metadata={**tensors}, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))


def read_tensors(folder: Path) -> Mapping[str, TensorStorageMetadata]:
    """Size and dtype of each saved tensor by name. Raises CheckpointError."""
    found = JsonIndexReader(folder).read_metadata().state_dict_metadata
    return {name: about for name, about in found.items() if isinstance(about, TensorStorageMetadata)}


def _chunk(chunk: ChunkStorageMetadata, place: Any) -> dict[str, Any]:
    assert not place.transform_descriptors, "no transform was asked for"
    where = {"file": place.relative_path, "offset": place.offset, "length": place.length}
    return {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes), **where}


def _tensor(about: Mapping[str, Any]) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(offsets=_size(one["offsets"]), sizes=_size(one["sizes"])) for one in about["chunks"]]
    return TensorStorageMetadata(properties=Properties(dtype=DTYPES[about["dtype"]]), size=_size(about["size"]), chunks=chunks)


def _size(numbers: Any) -> torch.Size:
    return torch.Size([_count(number) for number in numbers])


def _place(saved: Mapping[str, Any]) -> Place:
    file = saved["file"]
    if not isinstance(file, str) or file in ("", ".", "..") or Path(file).name != file:
        raise ValueError(f"{file!r} is no file of this folder")
    return Place(relative_path=file, offset=_count(saved["offset"]), length=_count(saved["length"]))


def _count(number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{number!r} is no count")
    return number
