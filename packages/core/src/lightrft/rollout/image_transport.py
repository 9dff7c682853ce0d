"""Images of requests between the ranks of an engine group: each different one travels once, as a PNG, to ranks that lack it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lightrft.distributed.collectives import Group, gather_objects, gather_ragged, gather_to_first
from lightrft.types import Request


def with_images_of_others(shares: list[list[Request]], mine: Sequence[Request], *, group: Group, everywhere: bool) -> list[list[Request]]:
    """`shares`, the requests of each rank of the group without their images, with them; equal images are one object. Collective.

    `mine` are this rank's own, whose images are PIL in RGB. With `everywhere` all ranks get the images, otherwise the first alone does
    (`shares` is empty on the others).
    """
    objects = {id(image): image for request in mine for image in request.images}
    names = {key: digest(image) for key, image in objects.items()}
    own = {names[key]: image for key, image in objects.items()}
    named = [[names[id(image)] for image in request.images] for request in mine]
    told: list[list[list[bytes]]] = gather_objects(named, group=group)
    if not any(name for rank in told for request in rank for name in request):
        return shares
    senders: dict[bytes, int] = {}
    for rank, requests in enumerate(told):
        for name in (one for request in requests for one in request):
            senders.setdefault(name, rank)
    here = 0 if group is None else torch.distributed.get_rank(group)
    # The first rank has its own already, and nobody else reads them where the engine runs there alone.
    sent = [name for name, sender in senders.items() if sender == here and (everywhere or here > 0)]
    found = own | _exchanged([(name, png_of(own[name])) for name in sent], group=group, everywhere=everywhere)
    return [
        [replace(request, images=tuple(found[name] for name in asked)) for request, asked in zip(share, requests, strict=True)]
        for share, requests in zip(shares, told, strict=False)
    ]


def digest(image: Any) -> bytes:
    """Of the size and the pixels of a PIL image in RGB: the same for equal images only."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def png_of(image: Any) -> bytes:
    """The bytes of a PNG, which loses nothing; quick rather than small."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _exchanged(images: Sequence[tuple[bytes, bytes]], *, group: Group, everywhere: bool) -> dict[bytes, Any]:
    """What the ranks bring (digest and PNG), decoded, by digest; nothing on a rank that gets none."""
    blob = b"".join(name + len(png).to_bytes(8, "little") + png for name, png in images)
    flat = torch.frombuffer(bytearray(blob), dtype=torch.uint8) if blob else torch.empty(0, dtype=torch.uint8)
    flats = gather_ragged(flat, group=group) if everywhere else gather_to_first(flat, group=group)
    return {name: image for one in flats for name, image in _decoded(one.numpy().tobytes())}


def _decoded(blob: bytes) -> list[tuple[bytes, Any]]:
    from PIL import Image

    found, at = [], 0
    while at < len(blob):
        name, size = blob[at : at + 32], int.from_bytes(blob[at + 32 : at + 40], "little")
        image = Image.open(io.BytesIO(blob[at + 40 : at + 40 + size]))
        image.load()
        found.append((name, image))
        at += 40 + size
    return found
