"""Does each cross-check speak up, alone and together with the others, and say nothing about a configuration that can run?"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from lightrft.config import Config, checks, make_config
from lightrft.config.checks import NEEDS, check, check_engine, check_strategy, strategy_name
from lightrft.config.ignored import POINTLESS
from lightrft.errors import ConfigError
from lightrft.plugins import (
    AdvantageSpec,
    Capability,
    EngineSpec,
    LoggerSpec,
    PluginEntry,
    PolicyLossSpec,
    Registry,
    RewardSpec,
    StrategySpec,
    builtin,
)
from lightrft.plugins.registry import Provider

ALL = frozenset(Capability)
Make = Callable[..., Config]


def entry(spec: Any, distribution: str = "lightrft", version: str = "0.1.0") -> PluginEntry:
    return PluginEntry(provider=Provider(distribution=distribution, version=version, entry_point="x"), spec=spec)


def registry(*more: PluginEntry) -> Registry:
    """A world where `able` can everything and `plain` nothing."""
    return Registry(
        [
            entry(StrategySpec(name="able", target="a:b", capabilities=ALL), "able-rft", "1.0"),
            entry(StrategySpec(name="plain", target="a:b"), "plain-rft", "2.0"),
            entry(EngineSpec(name="able", target="a:b", capabilities=ALL), "able-rft", "1.0"),
            entry(EngineSpec(name="plain", target="a:b"), "plain-rft", "2.0"),
            entry(RewardSpec(name="exact_match", target="a:b")),
            entry(AdvantageSpec(name="grpo", target="a:b", min_samples=2)),
            entry(PolicyLossSpec(name="ppo_clip", target="a:b")),
            entry(LoggerSpec(name="console", target="a:b")),
            entry(LoggerSpec(name="jsonl", target="a:b")),
            *more,
        ]
    )


@pytest.fixture
def make(tmp_path) -> Make:
    """A configuration that passes every check, with changes."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "1", "answer": "2"}\n', encoding="utf-8")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}", encoding="utf-8")

    def do(**changes: Any) -> Config:
        good = {"strategy": "able", "engine_type": "able", "prompt_data": str(data), "model_name_or_path": str(model)}
        return make_config({**good, "output_dir": str(tmp_path / "run"), **changes})

    return do


def problems(config: Config, *, world_size: int = 2, found: Registry | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(config, registry=found or registry(), world_size=world_size)
    return caught.value.problems


def test_a_good_configuration_passes(make):
    check(make(), registry=registry(), world_size=2)
    check(make(engine_tp_size=2, sp_size=2, zero_stage=3, bf16=True, engine_sleep_level=2), registry=registry(), world_size=8)


def test_everything_at_once(make):
    config = make(engine_tp_size=3, train_batch_size=7, prompt_data="none.jsonl", reward=["nope"], strategy="nope", kl_in="reward")
    assert len(problems(config)) == 7  # 7 divides neither by 4 x 2 nor into 1024


# ---- sizes -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({"engine_tp_size": 3}, 8, "engine_tp_size=3 does not divide the world size 8; possible: 1, 2, 4, 8"),
        (
            {"train_batch_size": 128, "micro_train_batch_size": 3},
            2,
            "train_batch_size=128 is not divisible by micro_train_batch_size x world size = 3 x 2 = 6; use a multiple of 6",
        ),
        (
            {"rollout_batch_size": 15, "n_samples_per_prompt": 8, "train_batch_size": 120},
            2,
            "rollout_batch_size=15 is not divisible by the world size 2; use a multiple of it",
        ),
        (
            {"rollout_batch_size": 16, "n_samples_per_prompt": 2, "train_batch_size": 24},
            2,
            "train_batch_size=24 does not divide the samples of one rollout, rollout_batch_size x n_samples_per_prompt = 16 x 2 = 32",
        ),
    ],
)
def test_sizes(make, changes, world_size, message):
    assert problems(make(**changes), world_size=world_size) == [message]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scratch_hidden": 100, "scratch_heads": 4},
            "scratch_hidden=100 is not a multiple of 2 x scratch_heads = 8 (rotary halves each head)",
        ),
        ({"scratch_heads": 4, "scratch_kv_heads": 3}, "scratch_kv_heads=3 does not divide scratch_heads=4"),
    ],
)
def test_scratch_sizes(make, changes, message):
    assert problems(make(model_name_or_path="", scratch_tokenizer="char", **changes)) == [message]


# ---- choices -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_weights": [1.0, 2.0]}, "reward_weights has 2 numbers for 1 rewards (exact_match); give one each"),
        ({"reward": []}, "reward is empty; name at least one (`lightrft plugins` lists them)"),
        (
            {"kl_coef": 0.1, "kl_estimator": "k1"},
            "kl_estimator='k1' with kl_in='loss' has a gradient of zero mean; use kl_in='reward', or kl_estimator k2 or k3",
        ),
        ({"prompt_template": "Q:"}, "prompt_template='Q:' does not contain {prompt}"),
        (
            {"n_samples_per_prompt": 1, "train_batch_size": 128},
            "advantage_estimator='grpo' compares the samples of one prompt: n_samples_per_prompt=1 gives it nothing; use at least 2, "
            "or an estimator that compares with something else (gae, reinforce_pp, remax)",
        ),
    ],
)
def test_choices(make, changes, message):
    assert problems(make(**changes)) == [message]


def with_algorithms() -> Registry:
    specs = [spec for spec in builtin.lightrft_plugins() if spec.kind in ("advantage", "policy_loss")]
    return Registry([e for e in registry().entries() if e.kind not in ("advantage", "policy_loss")] + [entry(spec) for spec in specs])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"advantage_estimator": "rloo", "n_samples_per_prompt": 1, "train_batch_size": 128},
            "advantage_estimator='rloo' compares the samples of one prompt: n_samples_per_prompt=1 gives it nothing; use at least 2, "
            "or an estimator that compares with something else (gae, reinforce_pp, remax)",
        ),
        (
            {"policy_loss": "gspo", "logprob_gap_action": "correct"},
            "policy_loss='gspo' has one ratio for a whole completion; with logprob_gap_action='correct' set mismatch_level to sequence, "
            "or use a loss of single tokens (ppo_clip)",
        ),
        (
            {"lambd": 0.5},
            "lambd=0.5 has no effect with advantage_estimator='grpo'; leave it out (gae would read it)",
        ),
        (
            {"gamma": 0.5},
            "gamma=0.5 has no effect with advantage_estimator='grpo'; leave it out (gae, reinforce_pp, reinforce_pp_baseline would ",
        ),
        (
            {"policy_loss": "cispo", "dual_clip": 3.0},
            "dual_clip=3.0 has no effect with policy_loss='cispo'; leave it out (ppo_clip",
        ),
        ({"drift_coef": 0.1}, "drift_coef=0.1 has no effect with policy_loss='ppo_clip'; leave it out (cpgd would read it)"),
        ({"dual_clip": 0.5}, "dual_clip=0.5 is not above 1, where it would bound ordinary losses; use about 3, or 0 for none"),
        ({"advantage_estimator": "rlooo"}, "unknown advantage 'rlooo'; did you mean 'rloo'?"),
        ({"policy_loss": "gsppo"}, "unknown policy_loss 'gsppo'; did you mean 'gspo'?"),
    ],
)
def test_algorithms_that_do_not_go_together(make, changes, message):
    [found] = problems(make(**changes), found=with_algorithms())
    assert found.startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"advantage_estimator": "remax", "n_samples_per_prompt": 1, "train_batch_size": 128},
        {"policy_loss": "gspo", "logprob_gap_action": "correct", "mismatch_level": "sequence"},
        {"advantage_estimator": "reinforce_pp", "gamma": 0.5},
        {"policy_loss": "ppo_clip", "dual_clip": 3.0, "eps_clip_low": 0.1, "eps_clip_high": 0.3},
    ],
)
def test_algorithms_that_do(make, changes):
    check(make(**changes), registry=with_algorithms(), world_size=2)


# Something other than the default, for each setting that may be without effect.
OTHER = {
    "dynamic_sampling_tries": 7,
    "overlong_penalty": 0.5,
    "chunk_size": 1,
    "kl_estimator": "k2",
    "kl_in": "reward",
    "lora_alpha": 8.0,
    "lora_target_modules": ["q_proj"],
    "engine_sleep_level": 2,
    "logprob_gap_threshold": 1.0,
    "logprob_gap_action": "correct",
    "mismatch_cap": 3.0,
    "mismatch_level": "sequence",
    "mismatch_beyond": "mask",
    "mismatch_floor": 0.5,
    "kl_target": 6.0,
    "kl_horizon": 5.0,
    "kl_limit": 2.0,
    "scratch_vocab_size": 300,
    "scratch_layers": 3,
    "scratch_hidden": 64,
    "scratch_heads": 2,
    "scratch_kv_heads": 2,
    "trust_remote_code": True,
    "sft_batch_size": 3,
    "sft_learning_rate": 0.5,
    "sft_key": "text",
    "sft_strip": "<<.*?>>",
    "sft_target_reward": 0.5,
    "max_eval_samples": 3,
    "eval_every": 3,
    "eval_n": 4,
    "eval_right_at": 0.5,
    "keep_checkpoints": 5,
    "keep_best": 2,
    "best_metric": "rollout/reward",
    "best_mode": "min",
}


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule in POINTLESS for name in rule.fields])
def test_a_setting_without_effect(make, rule, name):
    off = {"enable_engine_sleep": False, "logprob_gap_prompts": 0}.get(rule.on)
    changes: dict[str, Any] = {name: OTHER[name]} if off is None else {name: OTHER[name], rule.on: off}
    if name == "trust_remote_code":
        changes |= {"model_name_or_path": "", "scratch_tokenizer": "char"}
    if name == "sft_target_reward":
        changes |= {"sft_steps": 0 if rule.on == "sft_steps" else 5}
        changes |= {"eval_data": make().prompt_data if rule.on == "sft_steps" else ""}
    config = make(**changes)
    found = getattr(config, rule.on)
    assert problems(config) == [f"{name}={OTHER[name]!r} has no effect with {rule.on}={found!r}; {rule.remedy}, or leave {name} out"]


def test_the_same_settings_where_they_have_an_effect(make):
    data = make().prompt_data
    on = {
        "fused_linear_logprob": True,
        "kl_coef": 0.1,
        "lora_rank": 4,
        "sft_steps": 5,
        "eval_data": data,
        "scratch_tokenizer": "bpe",
        "model_name_or_path": "",
        "save_every": 5,
        "dynamic_sampling": True,
        "overlong_buffer": 2,
    }
    check(make(**on, **{k: v for k, v in OTHER.items() if k != "trust_remote_code"}), registry=registry(), world_size=2)
    check(make(trust_remote_code=True), registry=registry(), world_size=2)


def test_a_value_equal_to_its_default_counts_as_not_set_so_that_a_saved_configuration_runs_again(make):
    config = make()
    check(make_config(config.model_dump()), registry=registry(), world_size=2)


# ---- files -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompt_data", "eval_data"])
def test_missing_data(make, name):
    assert problems(make(**{name: "none.jsonl"})) == [f"{name}='none.jsonl': no such file or folder"]


def test_no_data(make):
    assert problems(make(prompt_data="")) == ["prompt_data is not set; give a .jsonl or .parquet file or a `datasets` folder"]


def test_models(make, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}", encoding="utf-8")
    for value, message in {
        "": "model_name_or_path is not set; give a HF model folder or a hub name",
        "./none": "model_name_or_path='./none': no such folder, and not a hub name of the form owner/name",
        "none": "model_name_or_path='none': no such folder, and not a hub name of the form owner/name",
        str(empty): f"model_name_or_path={str(empty)!r}: the folder has no config.json; give a folder written by save_pretrained",
        str(bare): f"model_name_or_path={str(bare)!r}: the folder has no tokenizer; save one there with tokenizer.save_pretrained",
    }.items():
        assert problems(make(model_name_or_path=value)) == [message]
    check(make(model_name_or_path="owner/name"), registry=registry(), world_size=2)


def test_a_model_and_a_scratch_model(make):
    config = make(scratch_tokenizer="char")
    expected = f"model_name_or_path={config.model_name_or_path!r} and scratch_tokenizer='char' exclude each other; leave one out"
    assert problems(config) == [expected]


def test_output_folder_that_holds_another_run(make, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    check(make(), registry=registry(), world_size=2)
    (folder / "config.yaml").write_text("", encoding="utf-8")
    remedies = "choose another folder, set --overwrite_output_dir, or --resume_from latest"
    assert problems(make()) == [f"output_dir={str(folder)!r} holds another run; {remedies}"]
    check(make(resume_from="latest"), registry=registry(), world_size=2)
    check(make(resume_from=str(folder / "checkpoints" / "step-2")), registry=registry(), world_size=2)
    assert problems(make(resume_from=str(tmp_path / "other" / "checkpoints" / "step-2"))) != []
    check(make(overwrite_output_dir=True), registry=registry(), world_size=2)


@pytest.mark.parametrize("name", ["output_dir", "log_dir"])
def test_folder_below_a_file(make, tmp_path, name):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    for value in (str(file), str(file / "below" / "it")):
        assert problems(make(**{name: value})) == [f"{name}={value!r}: {str(file)!r} is a file; give a folder"]


@pytest.mark.parametrize("name", ["output_dir", "log_dir"])
def test_folder_without_permission(make, tmp_path, name, monkeypatch):
    # the superuser may write anywhere, so the answer of the system is replaced
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    value = str(tmp_path / "no" / "run")
    changes = {name: value} if name == "output_dir" else {name: value, "output_dir": str(tmp_path / "run")}
    assert f"{name}={value!r} cannot be written: no permission on {str(tmp_path)!r}" in problems(make(**changes))


def test_reward_files(make, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("", encoding="utf-8")
    check(make(reward=[f"{file}:f", "package.module:f"]), registry=registry(), world_size=2)
    assert problems(make(reward=["none.py:f"])) == ["reward='none.py:f': no such file 'none.py'; the form is path/to/file.py:function"]
    for bad in (":f", "module:"):
        assert problems(make(reward=[bad])) == [f"reward={bad!r} is not of the form module:function or path/to/file.py:function"]


# ---- plugins -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "name"),
    [({}, "deepspeed"), ({"fsdp": True}, "fsdp"), ({"strategy": "acme"}, "acme"), ({"strategy": "fsdp", "fsdp": True}, "fsdp")],
)
def test_the_guides_selection(values, name):
    assert strategy_name(Config(**values)) == name


def test_both_fsdp_and_another_strategy(make):
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
def test_names(make, changes, message):
    assert problems(make(**changes)) == [message]


def test_a_broken_and_a_conflicting_plugin(make):
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
    "fsdp_reshard_after_forward": False,
    "bf16": True,
    "use_mp_opt": True,
    "sp_size": 2,
    "packing_samples": True,
    "fused_linear_logprob": True,
    "engine_tp_size": 2,
    "engine_mem_util": 0.5,
    "mixed_mm_data": True,
}
ALSO: dict[str, Any] = {"use_mp_opt": {"bf16": True}}
"""What a setting needs beside it; `plain` lacks that, too."""


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.field)
def test_a_capability_that_is_not_declared_names_who_lacks_it_and_who_has_it(make, need):
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
    check(make(**{need.field: ASKED[need.field]}, **also), registry=registry(), world_size=2)


def test_masters_need_parameters_that_round():
    for refuse in (check, check_strategy):
        with pytest.raises(ConfigError) as caught:
            refuse(make_config({"strategy": "able", "use_mp_opt": True}), registry=registry(), world_size=2)
        line = "use_mp_opt=True needs bf16, found bf16=False; set --bf16, or leave use_mp_opt out: parameters are float32 then anyway"
        assert line in caught.value.problems


def test_nobody_has_the_capability(make):
    alone = Registry([row for row in registry().entries() if (row.kind, row.name) != ("strategy", "able")])
    (only,) = problems(make(strategy="plain", bf16=True), world_size=1, found=alone)
    assert only.endswith("strategy that does: no installed one")


def test_several_ranks(make):
    check(make(strategy="plain"), registry=registry(), world_size=1)
    assert problems(make(strategy="plain"), world_size=2) == [
        "a world of 2 ranks needs the capability 'multi_rank', which strategy 'plain' (plain-rft 2.0) does not declare; "
        "strategy that does: able"
    ]


def test_sleep_level_2(make):
    config = make(engine_type="plain", logprob_gap_prompts=0, verify_sync_every=0, engine_sleep_level=2)
    assert problems(config) == [
        "engine_sleep_level=2 needs the capability 'sleep_2', which engine 'plain' (plain-rft 2.0) does not declare; engine that does: able"
    ]
    check(make(engine_type="plain", logprob_gap_prompts=0, verify_sync_every=0), registry=registry(), world_size=2)


def test_log_probs_for_the_gap(make):
    assert problems(make(engine_type="plain")) == [
        f"{asked} needs the capability 'logprobs', which engine 'plain' (plain-rft 2.0) does not declare; "
        f"engine that does: able; or set --{asked.split('=')[0]} 0"
        for asked in ("logprob_gap_prompts=2", "verify_sync_every=10")
    ]


def test_log_probs_for_the_correction(make):
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


def test_the_parts_for_scripts_look_at_their_own_part_only():
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


def test_adapters_without_peft_name_the_extra(make, monkeypatch):
    real = checks.find_spec
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "peft" else real(name))
    assert problems(make(lora_rank=4)) == ["lora_rank=4 needs peft: pip install 'lightrft[lora]'; or set --lora_rank 0"]
    monkeypatch.undo()
    assert problems(make(lora_rank=4, lora_target_modules=[])) == ["lora_target_modules is empty; name layers, or all-linear"]


def test_a_stage_that_was_typed_asks_for_it_also_at_its_default(make: Make) -> None:
    check(make(strategy="plain"), registry=registry(), world_size=1, typed=["strategy"])
    with pytest.raises(ConfigError, match=r"zero_stage=2 needs the capability 'zero_stages', which strategy 'plain' \(plain-rft 2.0\)"):
        check(make(strategy="plain"), registry=registry(), world_size=1, typed=["zero_stage"])
    check(make(), registry=registry(), world_size=2, typed=["zero_stage"])
    found = problems(make(strategy="plain", zero_stage=3), world_size=1)
    assert [line for line in found if "zero_stage" in line] == [line for line in found if line.startswith("zero_stage=3 needs")]
