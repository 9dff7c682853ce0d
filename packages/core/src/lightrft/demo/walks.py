"""The demo's task of several turns: walk from one field of a square to another, a move a turn, and be told where one stands."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from lightrft.demo.rows import write_rows
from lightrft.rollout.environment import Continue, Turn
from lightrft.rollout.gridworld import MOVES, Gridworld

SIDE, MOVES_OF_A_WALK = 3, 5


def write_walks(folder: Path, *, seed: int, num_train: int = 4096, num_eval: int = 16) -> tuple[Path, Path]:
    """Writes `train.jsonl` and `eval.jsonl` (prompt, start, goal; `walk`, an episode of moves drawn by chance) and returns the two paths.

    Of the 72 pairs of fields, those of the evaluation are in it alone; the others come again and again, with another walk each time.
    """
    source = random.Random(seed)
    fields = [(x, y) for x in range(SIDE) for y in range(SIDE)]
    pairs = [(start, goal) for start in fields for goal in fields if start != goal]
    source.shuffle(pairs)
    held_out, trained = pairs[:num_eval], pairs[num_eval:]
    rows = [make_row(*trained[at % len(trained)], source) for at in range(num_train)]
    return write_rows(folder, rows, [make_row(*pair, source) for pair in held_out])


def make_row(start: tuple[int, int], goal: tuple[int, int], source: random.Random) -> dict[str, Any]:
    """One row: `{"prompt": "0,0>2,1:", "start": [0, 0], "goal": [2, 1], "walk": "r 1,0: d 1,1: l ..."}`."""
    row = {"prompt": f"{start[0]},{start[1]}>{goal[0]},{goal[1]}:", "start": list(start), "goal": list(goal), "size": SIDE}
    return row | {"walk": _walk(row, source)}


def _walk(row: dict[str, Any], source: random.Random) -> str:
    """What the environment says to moves drawn by chance, until it ends."""
    world, text = Gridworld(), ""
    world.start(row)
    for number in range(MOVES_OF_A_WALK):
        move = source.choice(list(MOVES))
        last = number == MOVES_OF_A_WALK - 1
        answer = world.step(Turn(number=number, token_ids=(), text=move, raw_text=move, finish_reason="length", is_last=last))
        text += move
        if not isinstance(answer, Continue):
            break
        text += answer.text or ""
    return text
