"""Answers that stand in their own prompts: a reward then pays for copying."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightrft.data.prompts import Prompt
from lightrft.observe.warning_names import Finding

LONG = 20
"""Characters from which on an answer does not stand in a prompt by chance."""
EXCESS = 0.4
"""How much more often a short answer stands in its own prompt than in another's, at least."""
MOST = 2000
"""Prompts that are looked at."""


def labels_in_prompts(prompts: Sequence[Prompt]) -> Finding | None:
    """Training prompts that hold their own answer, as words of their own. Local.

    Short answers stand in some prompts by chance (a number, the letter of a choice): they count where they stand in their own prompt far
    more often than in the next one's.
    """
    given = [prompt for prompt in prompts[:MOST] if prompt.answer and prompt.answer.strip()]
    rows = [(_plain(prompt.text), _plain(prompt.answer)) for prompt in given]
    own = [index for index, (text, answer) in enumerate(rows) if _holds(text, answer)]
    long = [index for index in own if len(rows[index][1]) >= LONG]
    others = sum(_holds(rows[(index + 1) % len(rows)][0], answer) for index, (_, answer) in enumerate(rows))
    if not long and (len(rows) < 2 or len(own) - others < EXCESS * len(rows)):
        return None
    found = own if len(own) - others >= EXCESS * len(rows) else long
    shown = given[found[0]]
    return (
        "label_in_prompt",
        f"the answer stands in its own prompt in {len(found)} of {len(rows)} rows, the first is {(shown.answer or '')[:60]!r} in "
        f"...{shown.text[-80:]!r}; a reward then pays for copying: look at input_key, label_key and prompt_template (a task that is to "
        "choose or to quote may have it so)",
    )


def _plain(text: str | None) -> str:
    return " ".join((text or "").casefold().split())


def _holds(text: str, answer: str) -> bool:
    before, after = (r"(?<!\w)" if answer[:1].isalnum() else ""), (r"(?!\w)" if answer[-1:].isalnum() else "")
    return answer in text and re.search(before + re.escape(answer) + after, text) is not None
