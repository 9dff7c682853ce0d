"""The settings that the backend refuses, and the strategy that the guide's script gets without `--fsdp`."""

from __future__ import annotations

import argparse

import pytest

from lightrft.config.load import make_config
from lightrft.errors import ConfigError
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.utils import add_arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adam_offload": True, "zero_stage": 1}, "adam_offload=True needs zero_stage 2 or 3, found zero_stage=1"),
        ({"fsdp": True, "zero_stage": 3}, "zero_stage=3 needs the capability 'zero_stages', which strategy 'fsdp'"),
        ({"fsdp": True, "adam_offload": True}, "adam_offload=True needs the capability 'adam_offload', which strategy 'fsdp'"),
        ({"fsdp_cpu_offload": True}, "fsdp_cpu_offload=True needs the capability 'optimizer_offload', which strategy 'deepspeed'"),
        ({"fsdp": True, "adam_offload": True}, "; with fsdp use fsdp_cpu_offload"),
        ({"fsdp_cpu_offload": True}, "; with deepspeed use adam_offload"),
        ({"bf16": True, "zero_stage": 0}, "bf16=True at zero_stage=0 would add up gradients in bfloat16; use zero_stage 1"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_strategy(make_config(settings))
    assert message in str(caught.value)


def test_a_stage_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="zero_stage"):
        make_config({"zero_stage": 5})


def default() -> str:
    strategy = get_strategy(add_arguments(argparse.ArgumentParser()).parse_args([]))
    return f"{type(strategy).__module__}:{type(strategy).__name__} {strategy.config.zero_stage}"


def test_without_fsdp_the_strategy_is_deepspeed_at_stage_2() -> None:
    assert run_spmd(default, 1) == ["lightrft_deepspeed.strategy:DeepspeedStrategy 2"]
