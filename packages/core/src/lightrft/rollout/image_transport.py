"""Images of requests between the ranks of an engine group: each different one travels once, as a PNG, to ranks that lack it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lightrft.distributed.collectives import Group, gather_objects, gather_ragged, gather_to_first
from lightrft.types import Request, each_frame, frames_of


def with_images_of_others(slices: list[list[Request]], mine: Sequence[Request], *, group: Group, everywhere: bool) -> list[list[Request]]:
    """`slices`, the requests of each rank of the group without their images, with them; equal images are one object. Collective.

    `mine` are this rank's own, whose images are PIL in RGB, or videos of such frames. With `everywhere` all ranks get the images, otherwise
    the first alone does (`slices` is empty on the others).
    """
    objects = {id(frame): frame for request in mine for image in request.images for frame in frames_of(image)}
    names = {key: digest(frame) for key, frame in objects.items()}
    own = {names[key]: frame for key, frame in objects.items()}
    named = [[each_frame(image, lambda frame: names[id(frame)]) for image in request.images] for request in mine]
    told: list[list[list[Any]]] = gather_objects(named, group=group)
    senders: dict[bytes, int] = {}
    for rank, requests in enumerate(told):
        for name in (frame for request in requests for one in request for frame in frames_of(one)):
            senders.setdefault(name, rank)
    if not senders:
        return slices
    here = 0 if group is None else torch.distributed.get_rank(group)
    # The first rank has its own already, and nobody else reads them where the engine runs there alone.
    sent = [name for name, sender in senders.items() if sender == here and (everywhere or here > 0)]
    found = own | _exchanged([(name, png_of(own[name])) for name in sent], group=group, everywhere=everywhere)
    return [
        [
            replace(request, images=tuple(each_frame(name, found.__getitem__) for name in asked))
            for request, asked in zip(part, requests, strict=True)
        ]
        for part, requests in zip(slices, told, strict=False)
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
