"""A reward that teaches nothing: the right one, given to the wrong completions: the same numbers, in another order."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lightrft.rewards.exact_match import exact_match
from lightrft.types import Sample


def shuffled(samples: Sequence[Sample]) -> list[float]:
    """`exact_match` of the samples, dealt out among them by chance; its mean is the true one. The same samples give the same order."""
    rewards = list(exact_match(samples))
    random.Random("".join(sample.completion for sample in samples)).shuffle(rewards)
    return rewards
