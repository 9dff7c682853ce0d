"""The seeds of requests, by which draws repeat whatever rank, group or engine makes them."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, index: int) -> int:
    """A seed below 2**62 for the request of that index in a call; far apart for neighbours, as some engines add the sample's number."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
