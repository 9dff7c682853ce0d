"""Where names get a level that vLLM's modules have and the file's names lack, and where they stay."""

from __future__ import annotations

import pytest
import torch

from lightrft_vllm.nesting import in_tree, sole_level


def part(**children: torch.nn.Module) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


LINEAR = torch.nn.Linear(1, 1)
TREE = part(
    tower=part(vision_model=part(encoder=LINEAR, norm=LINEAR)),
    text=part(model=part(layers=torch.nn.ModuleList([part(mlp=part(experts=part(inner=LINEAR)))])), lm_head=LINEAR),
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("tower.encoder.weight", "tower.vision_model.encoder.weight"),
        ("tower.vision_model.encoder.weight", "tower.vision_model.encoder.weight"),
        ("tower.head.weight", "tower.head.weight"),  # which is nowhere below
        ("text.model.layers.0.mlp.experts.3.w1", "text.model.layers.0.mlp.experts.3.w1"),  # laid into one tensor, under another name
        ("text.lm_head.weight", "text.lm_head.weight"),
    ],
)
def test_a_level_is_put_in_where_the_name_goes_on_below_it(name: str, found: str) -> None:
    assert in_tree(TREE, name) == found


def test_what_has_tensors_or_a_loader_of_its_own_or_numbers_is_no_level() -> None:
    own = part(child=LINEAR)
    own.weight = torch.nn.Parameter(torch.zeros(1))
    loads = part(child=LINEAR)
    loads.load_weights = lambda weights: None  # type: ignore[assignment]  # as vLLM's models have
    assert sole_level(part(child=LINEAR)) == "child"
    assert [sole_level(one) for one in (own, loads, torch.nn.ModuleList([LINEAR]), part(a=LINEAR, b=LINEAR), None)] == [None] * 5
