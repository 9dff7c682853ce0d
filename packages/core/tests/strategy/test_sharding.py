"""The layers that are sharded one by one."""

from __future__ import annotations

import pytest
from torch import nn

from lightrft.errors import ModelError
from lightrft.strategy.sharding import find_blocks
from lightrft.testing.tiny import Family, tiny_causal_lm


class Block(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small = nn.ModuleList([Block(), Block()])
        self.large = nn.ModuleList([nn.Linear(9, 9), Block()])


class Named(Other):
    _no_split_modules = ["Block"]  # noqa: RUF012  # as transformers has it


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_decoder_layers_of_a_causal_model(family: Family) -> None:
    model = tiny_causal_lm(layers=3, family=family)
    assert find_blocks(model) == list(model.model.layers)


def test_named_classes_in_any_list_else_the_largest_list() -> None:
    assert [type(block) for block in find_blocks(Named())] == [Block, Block, Block]
    assert find_blocks(nn.Sequential(named := Named())) == [*named.small, named.large[1]]
    assert find_blocks(other := Other()) == list(other.large)


def test_a_model_without_blocks_is_refused_with_what_was_looked_for() -> None:
    with pytest.raises(ModelError, match=r"Linear has no blocks to shard: .*`_no_split_modules` \(none named\).*ModuleList"):
        find_blocks(nn.Linear(2, 2))
