"""What could be installed: names that we publish, and the extra of `lightrft` that brings each."""

from __future__ import annotations

KNOWN_EXTRAS: dict[tuple[str, str], str] = {
    ("strategy", "deepspeed"): "deepspeed",
    ("strategy", "fsdp"): "fsdp",
    ("engine", "vllm"): "vllm",
    ("engine", "sglang"): "sglang",
}


def install_hint(kind: str, name: str) -> str | None:
    """`pip install 'lightrft[extra]'` for a name that we publish, else None."""
    extra = KNOWN_EXTRAS.get((kind, name))
    return f"pip install 'lightrft[{extra}]'" if extra else None
