"""The supervised warm-up against numbers by hand: its loss, its first step, its order, where it stops."""

from __future__ import annotations

import math
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from transformers import PretrainedConfig

from lightrft.models.scratch import char_tokenizer, scratch_model
from lightrft.trainer.warmup import Example, WarmupSettings, shuffled_batches, target_loss, warm_up

PROBABILITIES = [[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [1 / 8, 1 / 8, 3 / 4]]


class Bigram(torch.nn.Module):
    """The next token depends on the last one only: row a of the table holds the log-probabilities after token a."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 3, bias=False)
        self.config = PretrainedConfig()
        self.head.weight = torch.nn.Parameter(torch.tensor(PROBABILITIES).log().T)

    @property
    def table(self) -> torch.Tensor:
        return self.head.weight.T

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.head

    def forward(self, *, input_ids, use_cache):
        return SimpleNamespace(logits=self.head(torch.nn.functional.one_hot(input_ids, 3).float()))


EXAMPLES = [Example(prompt=[0], target=[1, 2]), Example(prompt=[2, 1], target=[1])]


def settings(**changes) -> WarmupSettings:
    return WarmupSettings(**{"steps": 1, "batch_size": 2, "learning_rate": 0.1, "seed": 0} | changes)


def no_reward() -> float:
    raise AssertionError("greedy reward was measured without a target")


def test_the_loss_by_hand():
    # P(1|0) = 1/4, P(2|1) = 1/4, P(1|1) = 1/2: three target tokens, -ln of 2 + 2 + 1 halvings.
    assert target_loss(Bigram(), EXAMPLES).item() == pytest.approx(5 * math.log(2) / 3, rel=1e-6)


def test_the_loss_is_a_mean_over_tokens_not_over_examples():
    loss = target_loss(Bigram(), [Example(prompt=[0], target=[0, 0, 0]), Example(prompt=[0], target=[1])])
    assert loss.item() == pytest.approx((3 * math.log(2) + math.log(4)) / 4, rel=1e-6)


def test_the_first_step_by_hand():
    """AdamW's first step moves each entry by the learning rate against the sign of its gradient, which is p - (fraction of the target)."""
    model = Bigram()
    result = warm_up(model, EXAMPLES, settings=settings(), greedy_reward=no_reward, log=lambda line: None)
    signs = torch.tensor([[1.0, -1.0, 1.0], [1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    # after 0 comes 1; after 1 come 2 and 1: 2 x (1/4, 1/2, 1/4) - (0, 1, 1) = (1/2, 0, -1/2); after 2 nothing is a target
    expected = torch.tensor(PROBABILITIES).log() - 0.1 * signs
    moved = signs != 0
    torch.testing.assert_close(model.table.detach()[moved], expected[moved], rtol=0, atol=1e-6)
    assert torch.equal(model.table.detach()[2], torch.tensor(PROBABILITIES).log()[2])
    assert result.steps == 1
    assert result.loss == pytest.approx(5 * math.log(2) / 3, rel=1e-6)
    assert result.greedy_reward is None
    assert not model.training


def test_it_stops_at_the_target():
    rewards = iter([0.1, 0.3, 0.9])
    lines: list[str] = []
    result = warm_up(
        Bigram(),
        EXAMPLES,
        settings=settings(steps=50, check_every=3, target_reward=0.3),
        greedy_reward=lambda: next(rewards),
        log=lines.append,
    )
    assert (result.steps, result.greedy_reward) == (6, 0.3)
    assert lines == [f"warm-up step 6: loss {result.loss:.3f}, greedy reward 0.300"]


def test_all_steps_where_the_target_is_not_reached():
    lines: list[str] = []
    result = warm_up(
        Bigram(), EXAMPLES, settings=settings(steps=30, check_every=20, target_reward=0.5), greedy_reward=lambda: 0.25, log=lines.append
    )
    assert (result.steps, result.greedy_reward) == (30, 0.25)
    assert [line.split(":")[0] for line in lines] == ["warm-up step 25", "warm-up step 30"]


def test_the_reward_is_measured_in_eval_mode():
    model = Bigram()
    modes = []
    warm_up(
        model,
        EXAMPLES,
        settings=settings(steps=2, check_every=1, target_reward=1.0),
        greedy_reward=lambda: modes.append(model.training) or 0.0,
        log=lambda line: None,
    )
    assert modes == [False, False]


def test_every_row_comes_once_before_any_comes_again():
    rows = [row for batch in islice(shuffled_batches(7, 3, seed=1), 7) for row in batch]
    assert len(rows) == 21
    for epoch in (rows[:7], rows[7:14], rows[14:]):
        assert sorted(epoch) == list(range(7))
    assert rows[:7] != rows[7:14]
    assert rows == [row for batch in islice(shuffled_batches(7, 3, seed=1), 7) for row in batch]
    assert rows != [row for batch in islice(shuffled_batches(7, 3, seed=2), 7) for row in batch]


def test_a_transformer_learns_its_targets():
    tokenizer = char_tokenizer(["ab=xy"])
    model = scratch_model(tokenizer, layers=1, hidden=16, heads=2, kv_heads=2, seed=0)
    pairs = [("a=", "xy"), ("b=", "y")]
    examples = [Example(prompt=tokenizer(p).input_ids, target=[*tokenizer(t).input_ids, 1]) for p, t in pairs]
    before = target_loss(model, examples).item()
    result = warm_up(model, examples, settings=settings(steps=60, learning_rate=0.01), greedy_reward=no_reward, log=lambda line: None)
    assert before > 1.5
    assert result.loss < 0.1


def test_no_examples():
    with pytest.raises(ValueError, match="at least one example"):
        warm_up(Bigram(), [], settings=settings(), greedy_reward=no_reward, log=print)
