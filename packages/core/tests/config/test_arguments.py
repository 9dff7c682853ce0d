"""A plain argparse parser gets every flag of the guide, with its default; a namespace becomes the same configuration."""

from __future__ import annotations

import argparse

import pytest

from lightrft.config import Config, add_arguments, as_config
from lightrft.config.arguments import override_parser
from lightrft.errors import ConfigError

# The guide's chapter on required arguments, and the flags of its examples.
GUIDE = {
    "engine_tp_size": (["--engine_tp_size", "4"], 4),
    "engine_mem_util": (["--engine_mem_util", "0.9"], 0.9),
    "engine_type": (["--engine_type", "sglang"], "sglang"),
    "enable_engine_sleep": (["--disable_engine_sleep"], False),
    "fsdp": (["--fsdp"], True),
    "zero_stage": (["--zero_stage", "3"], 3),
    "fsdp_cpu_offload": (["--fsdp_cpu_offload"], True),
    "adam_offload": (["--adam_offload"], True),
    "sp_size": (["--sp_size", "2"], 2),
    "packing_samples": (["--packing_samples"], True),
    "use_mp_opt": (["--use_mp_opt"], True),
    "fused_linear_logprob": (["--fused_linear_logprob"], True),
    "chunk_size": (["--chunk_size", "1024"], 1024),
    "log_dir": (["--log_dir", "./logs"], "./logs"),
    "plot_every": (["--plot_every", "20"], 20),
    "mixed_mm_data": (["--mixed_mm_data"], True),
    "bf16": (["--bf16"], True),
    "micro_train_batch_size": (["--micro_train_batch_size", "1"], 1),
    "train_batch_size": (["--train_batch_size", "64"], 64),
    "micro_rollout_batch_size": (["--micro_rollout_batch_size", "16"], 16),
}
DEFAULTS = {
    "engine_tp_size": 1,
    "engine_mem_util": 0.85,
    "engine_type": "vllm",
    "enable_engine_sleep": True,
    "fsdp": False,
    "zero_stage": 2,
    "fsdp_cpu_offload": False,
    "adam_offload": False,
    "sp_size": 1,
    "packing_samples": False,
    "use_mp_opt": False,
    "fused_linear_logprob": False,
    "chunk_size": 4096,
    "plot_every": 10,
    "mixed_mm_data": False,
    "bf16": False,
}


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    assert add_arguments(parser) is parser
    return parser.parse_args(list(flags))


@pytest.mark.parametrize(("name", "default"), DEFAULTS.items())
def test_guide_default(name, default):
    value = getattr(parse(), name)
    assert (value, type(value)) == (default, type(default))


@pytest.mark.parametrize(("name", "flags", "value"), [(name, *rest) for name, rest in GUIDE.items()])
def test_guide_flag(name, flags, value):
    args = parse(*flags)
    assert getattr(args, name) == value
    assert type(getattr(args, name)) is type(value)
    assert getattr(as_config(args), name) == value


def test_both_sleep_flags():
    assert parse("--enable_engine_sleep").enable_engine_sleep is True
    assert parse("--disable_engine_sleep", "--enable_engine_sleep").enable_engine_sleep is True
    assert parse("--enable_engine_sleep", "--disable_engine_sleep").enable_engine_sleep is False


def test_every_field_is_a_flag_and_parses_to_its_default():
    args = vars(parse())
    assert args.keys() == Config.model_fields.keys() - {"plugins"} | {"cpgd.drift_coef"}
    assert as_config(parse()) == Config()
    assert as_config(parse()).model_fields_set == set()


def test_lists_and_switches_off():
    args = parse("--reward", "math", "format", "--reward_weights", "1", "0.5", "--no-fsdp")
    assert (args.reward, args.reward_weights, args.fsdp) == (["math", "format"], [1.0, 0.5], False)


@pytest.mark.parametrize("flags", [["--zero_stage", "7"], ["--chunk_size", "many"], ["--no_such_flag"], ["--kl_in", "nowhere"]])
def test_argparse_refuses_with_code_2(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*flags)
    assert caught.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_the_help_text_names_every_flag():
    parser = argparse.ArgumentParser()
    text = add_arguments(parser).format_help()
    assert all(f"--{name}" in text for name in Config.model_fields if name != "plugins") and "--cpgd.drift_coef" in text


def test_the_callers_own_flags_stay_beside_ours():
    parser = argparse.ArgumentParser()
    parser.add_argument("--my_own", default=3)
    add_arguments(parser)
    config = as_config(parser.parse_args(["--fsdp"]))
    assert config == Config(fsdp=True)


def test_a_namespace_with_less_is_filled_with_defaults():
    assert as_config(argparse.Namespace(fsdp=True)) == Config(fsdp=True)
    assert as_config(argparse.Namespace()) == Config()


def test_a_config_stays_as_it_is():
    config = Config(fsdp=True)
    assert as_config(config) is config


def test_a_namespace_with_bad_values_reports_them_all():
    with pytest.raises(ConfigError) as caught:
        as_config(argparse.Namespace(sp_size=0, kl_coef=-1.0, fsdp="perhaps"))
    assert [problem.split("=")[0] for problem in sorted(caught.value.problems)] == ["fsdp", "kl_coef", "sp_size"]


def test_override_parser_gives_only_what_was_given_and_leaves_judging_to_the_config():
    parser = override_parser(argparse.ArgumentParser())
    assert vars(parser.parse_args([])) == {}
    given = vars(parser.parse_args(["--zero_stage", "3", "--seed", "x", "--learning_rate", "1e-4", "--fsdp", "--kl_in", "nowhere"]))
    assert given == {"zero_stage": 3, "seed": "x", "learning_rate": "1e-4", "fsdp": True, "kl_in": "nowhere"}
