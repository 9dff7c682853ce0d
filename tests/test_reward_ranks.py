"""Does a reward that fails on one rank stop all of them, at the same place and with the same words?"""

from __future__ import annotations

import torch

from lightrft.config.load import make_config
from lightrft.errors import RewardError
from lightrft.experience.scored import scored_everywhere
from lightrft.rewards.load import NamedReward
from lightrft.rewards.remote import RemoteReward, RemoteSettings
from lightrft.rewards.score import score
from lightrft.strategy.factory import get_strategy
from lightrft.testing.spmd import run_spmd
from lightrft.types import Sample


def one_rank_without_its_server() -> tuple[str, float]:
    strategy = get_strategy(make_config({"strategy": "fsdp"}))
    sample = Sample(prompt="p", completion="c")
    dead = RemoteReward("judge", "http://127.0.0.1:9/", RemoteSettings(retries=1, backoff_s=0.01, timeout_s=5))
    good = NamedReward(name="r", function=lambda samples: [1.0] * len(samples))
    rewards = [NamedReward(name="judge", function=dead) if strategy.world.rank == 1 else good]
    message = ""
    try:
        scored_everywhere(lambda: score([sample], rewards=rewards), strategy=strategy)
    except RewardError as error:
        message = str(error)
    # All ranks are out of it: they can still meet, as they have to for a checkpoint.
    return message, float(strategy.all_reduce(torch.ones(1), "sum"))


def test_all_ranks_stop_together_and_can_still_meet() -> None:
    (first, met), (second, also) = run_spmd(one_rank_without_its_server, 2)
    assert second.startswith("reward server 'judge' (http://127.0.0.1:9/) gave no rewards for 1 samples, asked 2 times")
    assert first == f"scoring completions failed on rank 1 of its group: RewardServerError: {second}"
    assert met == also == 2.0
