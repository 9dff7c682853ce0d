"""Which tensors a model folder holds, in which shapes: what an engine that was built from it needs to be sent."""

from __future__ import annotations

from pathlib import Path

from lightrft.config.tensor_headers import INDEX, WHOLE, tensor_headers
from lightrft.errors import ModelError

__all__ = ["INDEX", "WHOLE", "expected_shapes"]


def expected_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """Name to full shape. Empty where the folder has no safetensors (a hub name, other formats): then nothing can be compared.

    Raises:
        ModelError: a file that is cut off, or none of that format.
    """
    try:
        return {name: header.shape for name, header in tensor_headers(Path(folder)).items()}
    except (OSError, ValueError) as error:
        raise ModelError(f"model folder {folder!r}: its safetensors cannot be read: {error}") from error
