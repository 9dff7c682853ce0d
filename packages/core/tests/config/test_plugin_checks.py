"""A plugin that is not there, or cannot do what the settings ask, is told at start with who can."""

from __future__ import annotations

from typing import Any

import pytest

from lightrft.config import Config, checks, make_config
from lightrft.config.checks import NEEDS, check, check_engine, check_strategy, strategy_name, without_effect
from lightrft.errors import ConfigError
from lightrft.plugins import (
    Capability,
    EngineSpec,
    PluginEntry,
    Registry,
    RewardSpec,
)
from lightrft.plugins.registry import Provider
from lightrft.testing.fake_strategy import fake_registry


@pytest.mark.parametrize(
    ("values", "name"),
    [({}, "deepspeed"), ({"fsdp": True}, "fsdp"), ({"strategy": "acme"}, "acme"), ({"strategy": "fsdp", "fsdp": True}, "fsdp")],
)
def test_the_guides_selection(values, name):
    assert strategy_name(Config(**values)) == name


def test_both_fsdp_and_another_strategy(make, problems):
    assert problems(make(fsdp=True)) == ["--fsdp and --strategy able exclude each other; leave one out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": ""}, "strategy 'deepspeed' is not installed: pip install 'lightrft[deepspeed]' (installed: able, plain)"),
        ({"strategy": "", "fsdp": True}, "strategy 'fsdp' is not installed: pip install 'lightrft[fsdp]' (installed: able, plain)"),
        ({"engine_type": "vllm"}, "engine 'vllm' is not installed: pip install 'lightrft[vllm]' (installed: able, plain)"),
        (
            {"engine_type": "plainn"},
            "unknown engine 'plainn'; did you mean 'plain'? (installed: able, plain; `lightrft plugins` lists all)",
        ),
        (
            {"reward": ["exact_mach"]},
            "unknown reward 'exact_mach'; did you mean 'exact_match'? (installed: exact_match; `lightrft plugins` lists all)",
        ),
        ({"advantage_estimator": "zzz"}, "unknown advantage 'zzz' (installed: grpo; `lightrft plugins` lists all)"),
        ({"policy_loss": "zzz"}, "unknown policy_loss 'zzz' (installed: ppo_clip; `lightrft plugins` lists all)"),
        (
            {"loggers": ["console", "jsnl"]},
            "unknown logger 'jsnl'; did you mean 'jsonl'? (installed: console, jsonl; `lightrft plugins` lists all)",
        ),
    ],
)
def test_names(make, changes, message, problems):
    assert problems(make(**changes)) == [message]


def test_a_broken_and_a_conflicting_plugin(make, problems, registry, entry):
    broken = PluginEntry(
        provider=Provider(distribution="sad-rft", version="3.0", entry_point="sad"), spec=None, state="broken", reason="OSError: disk"
    )
    twins = [entry(RewardSpec(name="twin", target="a:b"), name, "1.0") for name in ("castor", "pollux")]
    found = problems(make(strategy="sad", reward=["twin"]), found=registry(broken, *twins))
    assert found == [
        "strategy 'sad' of sad-rft 3.0 is installed but broken: OSError: disk",
        "reward 'twin': provided by castor 1.0 and by pollux 1.0: uninstall all but one",
    ]


ASKED = {
    "zero_stage": 3,
    "adam_offload": True,
    "fsdp_cpu_offload": True,
    "offload_frozen": True,
    "fsdp_reshard_after_forward": False,
    "bf16": True,
    "use_mp_opt": True,
    "engine_tp_size": 2,
    "engine_mem_util": 0.5,
    "deterministic_rollout": True,
    "stop": ["\n"],
    "min_p": 0.1,
    "min_new_tokens": 2,
    "mixed_mm_data": True,
}
ALSO: dict[str, Any] = {"use_mp_opt": {"bf16": True}, "offload_frozen": {"kl_coef": 0.1}}
"""What a setting needs beside it; `plain` lacks that, too."""


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.field)
def test_a_capability_that_is_not_declared_names_who_lacks_it_and_who_has_it(make, need, problems, registry):
    chosen = (
        {"strategy": "plain"} if need.kind == "strategy" else {"engine_type": "plain", "logprob_gap_prompts": 0, "verify_sync_every": 0}
    )
    also = ALSO.get(need.field, {})
    config = make(**{need.field: ASKED[need.field]}, **also, **chosen)
    world_size = 1 if need.kind == "strategy" else 2
    assert [line for line in problems(config, world_size=world_size) if not line.startswith(tuple(also))] == [
        f"{need.field}={ASKED[need.field]!r} needs the capability {str(need.capability)!r}, "
        f"which {need.kind} 'plain' (plain-rft 2.0) does not declare; {need.kind} that does: able"
    ]
    asked = make(**{need.field: ASKED[need.field]}, **also)
    check(asked, registry=registry(), world_size=2)


def test_masters_need_parameters_that_round(registry):
    for refuse in (check, check_strategy):
        with pytest.raises(ConfigError) as caught:
            refuse(make_config({"strategy": "able", "use_mp_opt": True}), registry=registry(), world_size=2)
        line = "use_mp_opt=True needs bf16, found bf16=False; set --bf16, or leave use_mp_opt out: parameters are float32 then anyway"
        assert line in caught.value.problems


def test_nobody_has_the_capability(make, problems, registry):
    alone = Registry([row for row in registry().entries() if (row.kind, row.name) != ("strategy", "able")])
    (only,) = problems(make(strategy="plain", bf16=True), world_size=1, found=alone)
    assert only.endswith("strategy that does: no installed one")


def test_several_ranks(make, problems, registry):
    check(make(strategy="plain"), registry=registry(), world_size=1)
    assert problems(make(strategy="plain"), world_size=2) == [
        "a world of 2 ranks needs the capability 'multi_rank', which strategy 'plain' (plain-rft 2.0) does not declare; "
        "strategy that does: able"
    ]


def test_sleep_level_2(make, problems, registry):
    config = make(engine_type="plain", logprob_gap_prompts=0, verify_sync_every=0, engine_sleep_level=2)
    assert problems(config) == [
        "engine_sleep_level=2 needs the capability 'sleep_2', which engine 'plain' (plain-rft 2.0) does not declare; engine that does: able"
    ]
    check(make(engine_type="plain", logprob_gap_prompts=0, verify_sync_every=0), registry=registry(), world_size=2)


def test_log_probs_for_the_gap(make, problems):
    assert problems(make(engine_type="plain")) == [
        f"{asked} needs the capability 'logprobs', which engine 'plain' (plain-rft 2.0) does not declare; "
        f"engine that does: able; or set --{asked.split('=')[0]} 0"
        for asked in ("logprob_gap_prompts=2", "verify_sync_every=10")
    ]


def test_log_probs_for_the_correction(make, problems, registry):
    assert problems(make(engine_type="plain", logprob_gap_action="correct", verify_sync_every=0)) == [
        f"{asked} needs the capability 'logprobs', which engine 'plain' (plain-rft 2.0) does not declare; "
        f"engine that does: able; or {remedy}"
        for asked, remedy in [
            ("logprob_gap_action='correct'", "leave logprob_gap_action out"),
            ("logprob_gap_prompts=2", "set --logprob_gap_prompts 0"),
        ]
    ]
    assert problems(make(logprob_gap_action="correct", logprob_gap_prompts=5)) == [
        "logprob_gap_prompts=5 has no effect with logprob_gap_action='correct', which takes all prompts; leave logprob_gap_prompts out"
    ]
    assert problems(make(logprob_gap_action="correct", logprob_gap_prompts=0)) == [
        "logprob_gap_action='correct' has no effect with logprob_gap_prompts=0; set logprob_gap_prompts above 0, or leave "
        "logprob_gap_action out"
    ]
    check(make(logprob_gap_action="correct", mismatch_level="sequence", mismatch_cap=1.0), registry=registry(), world_size=2)


def test_a_cap_below_one_is_refused(make):
    with pytest.raises(ConfigError, match="mismatch_cap"):
        make(logprob_gap_action="correct", mismatch_cap=0.9)


def test_what_an_engine_honours_on_cuda_only_is_said_elsewhere(registry):
    spec = EngineSpec(name="gpu", target="a:b", capabilities=frozenset(Capability), cuda_only=frozenset({Capability.MEM_UTIL}))
    config = Config(engine_type="gpu", engine_mem_util=0.5)
    assert without_effect(config, spec, device_type="cuda") == without_effect(Config(), spec, device_type="cpu") == []
    assert without_effect(config, spec, device_type="cpu") == [
        "engine_mem_util=0.5 has no effect: engine 'gpu' has 'mem_util' on CUDA only, this rank runs on cpu"
    ]


def test_the_parts_for_scripts_look_at_their_own_part_only(registry):
    # neither data nor model is set: not the part's business
    check_strategy(Config(strategy="able", engine_type="nope"), registry=registry(), world_size=2)
    check_engine(Config(strategy="nope", engine_type="able"), registry=registry(), world_size=2)
    for part, config in [
        (check_strategy, Config(strategy="plain")),
        (check_strategy, Config(strategy="nope")),
        (check_strategy, Config(strategy="able", fsdp=True)),
        (check_strategy, Config(strategy="plain", bf16=True)),
        (check_engine, Config(engine_type="nope")),
        (check_engine, Config(engine_type="able", engine_tp_size=3)),
        (check_engine, Config(engine_type="plain", engine_sleep_level=2)),
        (check_engine, Config(engine_type="plain", engine_tp_size=2)),
    ]:
        with pytest.raises(ConfigError) as caught:
            part(config, registry=registry(), world_size=2)
        assert len(caught.value.problems) == 1


def test_adapters_without_peft_name_the_extra(make, monkeypatch, problems):
    real = checks.find_spec
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "peft" else real(name))
    assert problems(make(lora_rank=4)) == ["lora_rank=4 needs peft: pip install 'lightrft[lora]'; or set --lora_rank 0"]
    monkeypatch.undo()
    assert problems(make(lora_rank=4, lora_target_modules=[])) == ["lora_target_modules is empty; name layers, or all-linear"]


def test_a_stage_that_was_typed_asks_for_it_also_at_its_default(make, problems, registry):
    check(make(strategy="plain"), registry=registry(), world_size=1, typed=["strategy"])
    with pytest.raises(ConfigError, match=r"zero_stage=2 needs the capability 'zero_stages', which strategy 'plain' \(plain-rft 2.0\)"):
        check(make(strategy="plain"), registry=registry(), world_size=1, typed=["zero_stage"])
    check(make(), registry=registry(), world_size=2, typed=["zero_stage"])
    found = problems(make(strategy="plain", zero_stage=3), world_size=1)
    assert [line for line in found if "zero_stage" in line] == [line for line in found if line.startswith("zero_stage=3 needs")]


def test_a_deterministic_rollout_is_refused_where_the_device_has_none() -> None:
    able = EngineSpec(
        name="able", target="a:b", capabilities=frozenset({Capability.DETERMINISTIC}), cuda_only=frozenset({Capability.DETERMINISTIC})
    )
    registry = fake_registry(able)
    config = Config(engine_type="able", strategy="fake", deterministic_rollout=True)
    check_engine(config, registry=registry, world_size=1, device_type="cuda")
    with pytest.raises(ConfigError, match="deterministic_rollout=True: engine 'able' has 'deterministic' on CUDA only, and this is cpu"):
        check_engine(config, registry=registry, world_size=1, device_type="cpu")
    assert without_effect(config, able, device_type="cpu") == []
    with pytest.raises(ConfigError, match="deterministic_rollout=True needs the capability 'deterministic'"):
        check_engine(config.model_copy(update={"engine_type": "fake"}), registry=registry, world_size=1)
