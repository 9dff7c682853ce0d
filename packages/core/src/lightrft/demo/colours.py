"""The demo's second task: say the first letter of a square's colour. Pictures, rows and a tiny image-text model, made from a seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from lightrft.demo.rows import MODEL_FOLDER, write_rows

SIDE = 16
QUESTION = "colour:"
FRACTION_RIGHT = 0.5
"""Of what the warm-up imitates; the rest is a letter drawn by chance."""

ALPHABET = "".join(map(chr, range(32, 127)))
COLOURS = {
    "red": (220, 30, 30), "green": (30, 170, 50), "blue": (30, 60, 220), "yellow": (230, 220, 40), "navy": (10, 10, 60),
    "white": (245, 245, 245), "pink": (250, 150, 190), "teal": (20, 140, 150),
}  # fmt: skip


def write_colours(folder: Path, *, seed: int, num_train: int = 1024, num_eval: int = 128) -> tuple[Path, Path]:
    """Writes `train.jsonl` and `eval.jsonl` (prompt, images, answer; `form`, to imitate), their pictures, and the model that learns from
    them as `model`; returns the two paths.
    """
    from lightrft.engine.quiet import no_progress_bars  # transformers, which the command line has no need of for another task
    from lightrft.models.scratch import char_tokenizer
    from lightrft.models.scratch_images import save_image_folder, scratch_image_model, with_image_tokens

    source = random.Random(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = {
        name: [_row(folder, f"{name}-{at}", source) for at in range(number)] for name, number in (("train", num_train), ("eval", num_eval))
    }
    tokenizer = with_image_tokens(char_tokenizer([ALPHABET]))
    with no_progress_bars():
        save_image_folder(folder / MODEL_FOLDER, scratch_image_model(tokenizer, seed=seed), tokenizer, side=SIDE)
    return write_rows(folder, rows["train"], rows["eval"])


def _row(folder: Path, name: str, source: random.Random) -> dict[str, Any]:
    name_of_colour = source.choice(list(COLOURS))
    file = f"pictures/{name}.png"
    _picture(COLOURS[name_of_colour], source).save(folder / file)
    imitated = name_of_colour if source.random() < FRACTION_RIGHT else source.choice(list(COLOURS))
    return {"prompt": QUESTION, "images": [file], "answer": name_of_colour[0], "form": imitated[0]}


def _picture(colour: tuple[int, int, int], source: random.Random) -> Any:
    """A square of about that colour somewhere on grey noise."""
    from PIL import Image

    image = Image.new("RGB", (SIDE, SIDE))
    image.putdata([(grey, grey, grey) for grey in (source.randrange(90, 160) for _ in range(SIDE * SIDE))])
    own = tuple(min(max(part + source.randrange(-15, 16), 0), 255) for part in colour)
    size = source.randrange(7, 11)
    image.paste(own, (at := source.randrange(SIDE - size + 1), up := source.randrange(SIDE - size + 1), at + size, up + size))
    return image
