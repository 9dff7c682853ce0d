"""What torch's flight recorder says of this rank's last collectives, in lines; it records them by itself, for gloo and nccl."""

from __future__ import annotations

import json
import threading
from typing import Any

import torch

READERS = ("_dump_fr_trace_json", "_dump_nccl_trace_json")
"""Of gloo's recorder and of nccl's; a build has those of the libraries that it was built with."""
ANSWERS_WITHIN_S = 2.0


def last_collectives(number: int = 3) -> str:
    """The newest ones, a line each, oldest first: name, count and group, sizes, and how far it came. Empty where none was recorded.

    Not collective; from any thread. Where a recorder does not answer in time (it asks the device), that is said.
    """
    entries: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: entries.extend(_entries()), name="lightrft-flight-recorder", daemon=True)
    reader.start()
    reader.join(ANSWERS_WITHIN_S)
    if reader.is_alive():
        return f"torch's flight recorder does not answer within {ANSWERS_WITHIN_S:g} s\n"
    newest = sorted(entries, key=lambda entry: entry["time_created_ns"])[-number:]
    return "".join(f"{line}\n" for line in (["last collectives, by torch's flight recorder:", *map(_line, newest)] if newest else []))


def _entries() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    library: Any = torch._C._distributed_c10d
    for name in READERS:
        if hasattr(library, name):
            found += json.loads(getattr(library, name)(True, False)).get("entries", [])
    return found


def _line(entry: dict[str, Any]) -> str:
    group = " ".join(map(str, entry["process_group"]))
    return f"  {entry['profiling_name']} {entry['collective_seq_id']} of group {group}, sizes {entry['input_sizes']}: {entry['state']}"
