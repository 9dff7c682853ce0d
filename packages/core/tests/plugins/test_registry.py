"""Discovery finds what is installed; each failure names its own remedy and harms nobody else."""

from __future__ import annotations

import sys
from importlib.metadata import version

import pytest

from lightrft.errors import PluginBrokenError, PluginConflictError, PluginNotInstalledError
from lightrft.plugins import Capability, Registry


def states(registry: Registry) -> dict[tuple[str, str], str]:
    return {(row.kind, row.name): row.state for row in registry.entries()}


def test_core_brings_its_own(install):
    registry = Registry.discover()
    assert (
        states(registry).items()
        >= {
            ("strategy", "single"): "ok",
            ("engine", "hf"): "ok",
            ("reward", "exact_match"): "ok",
            ("advantage", "grpo"): "ok",
            ("policy_loss", "ppo_clip"): "ok",
            ("logger", "jsonl"): "ok",
        }.items()
    )
    provider = registry.entry("engine", "hf").provider
    assert str(provider) == f"lightrft {version('lightrft')}"


FUNCTION = "def f(*given):\n    return given\n"
STRATEGY = "from lightrft.strategy.single import SingleStrategy\nclass f(SingleStrategy): pass\n"
ENGINE = "from lightrft.testing.fake_engine import FakeEngine\nclass f(FakeEngine): pass\n"


@pytest.mark.parametrize(
    ("spec", "kind", "code"),
    [
        ("StrategySpec", "strategy", STRATEGY),
        ("EngineSpec", "engine", ENGINE),
        ("RewardSpec", "reward", FUNCTION),
        ("AdvantageSpec", "advantage", FUNCTION),
        ("PolicyLossSpec", "policy_loss", FUNCTION),
        ("LoggerSpec", "logger", "class f: pass\n"),
        ("EnvironmentSpec", "environment", "from lightrft.rollout.environment import SingleTurn as f\n"),
    ],
)
def test_a_third_party_registers_every_kind_and_it_loads_on_first_use(install, plugin_source, spec, kind, code):
    module = f"acme_{kind}_code"
    install("acme-rft", **{f"acme_{kind}": plugin_source(spec, target=f"{module}:f"), module: code})
    registry = Registry.discover()
    assert str(registry.entry(kind, "acme").provider) == "acme-rft 1.0"
    assert module not in sys.modules
    assert registry.load(kind, "acme") is sys.modules[module].f


@pytest.mark.parametrize(
    ("spec", "kind", "code", "problem"),
    [
        ("StrategySpec", "strategy", FUNCTION, "is no subclass of lightrft.strategy.strategy_base.StrategyBase"),
        ("StrategySpec", "strategy", ENGINE, "is no subclass of lightrft.strategy.strategy_base.StrategyBase"),
        ("EngineSpec", "engine", "class f: pass", "is no subclass of lightrft.engine.base.InferenceEngine"),
        (
            "EngineSpec",
            "engine",
            "from lightrft.engine.base import InferenceEngine as E\nclass f(E):\n    generate = update_weights = status = sleep = None",
            "does not define reset_cache, shutdown, wake_up, which InferenceEngine asks for",
        ),
        ("RewardSpec", "reward", "f = 3", "is 3, which cannot be called"),
    ],
)
def test_a_target_that_is_not_what_its_kind_asks_for_is_broken(install, plugin_source, spec, kind, code, problem):
    name = f"acme_wrong_{kind}"
    install("acme-rft", version="2.1", **{name: plugin_source(spec, target=f"{name}_code:f"), f"{name}_code": code})
    with pytest.raises(PluginBrokenError) as caught:
        Registry.discover().load(kind, "acme")
    assert str(caught.value) == f"{kind} 'acme' of acme-rft 2.1 is installed but broken: {name}_code:f {problem}"


def test_capabilities_are_read_from_the_spec(install, plugin_source):
    source = plugin_source("EngineSpec", more="capabilities=frozenset({Capability.SLEEP_1}), topology='spmd'")
    install("acme-rft", acme_engine_caps=source.replace("hookimpl\n", "Capability, hookimpl\n", 1))
    registry = Registry.discover()
    assert registry.spec("engine", "acme").topology == "spmd"
    assert registry.having("engine", Capability.SLEEP_1) == ["acme", "hf"]


# ---- not installed -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("strategy", "deepspeed"), ("strategy", "fsdp"), ("engine", "vllm"), ("engine", "sglang")])
def test_a_published_plugin_that_is_missing_says_what_to_install(kind, name):
    with pytest.raises(PluginNotInstalledError) as caught:
        Registry([]).entry(kind, name)
    assert str(caught.value) == f"{kind} {name!r} is not installed: pip install 'lightrft[{name}]' (installed: none)"


def test_an_unknown_name_gives_the_nearest_and_what_is_there(install, plugin_source):
    install("acme-rft", acme_unknown=plugin_source(name="brevity"))
    registry = Registry.discover()
    with pytest.raises(
        PluginNotInstalledError,
        match=r"unknown reward 'brevty'; did you mean 'brevity'\? \(installed: brevity, code, environment, exact_match, ",
    ):
        registry.load("reward", "brevty")
    with pytest.raises(PluginNotInstalledError, match=r"unknown engine 'vlm'; did you mean 'vllm'\?"):
        registry.entry("engine", "vlm")
    with pytest.raises(PluginNotInstalledError, match=r"unknown strategy 'zzz' \(installed: "):
        registry.entry("strategy", "zzz")


def test_the_kind_counts(install, plugin_source):
    install("acme-rft", acme_kind=plugin_source("RewardSpec"))
    with pytest.raises(PluginNotInstalledError, match="unknown engine 'acme'"):
        Registry.discover().entry("engine", "acme")


# ---- installed but broken ----------------------------------------------------------------------------------------------------------------


def test_a_broken_plugin_is_kept_with_its_reason_and_raises_its_own_error_when_asked_for(install, plugin_source):
    install("broken-rft", version="0.3", broken="raise RuntimeError('no\\nGPU')")
    install("acme-rft", acme_whole=plugin_source())
    registry = Registry.discover()
    row = next(r for r in registry.entries() if r.name == "broken")
    assert (row.kind, row.state, row.reason, str(row.provider)) == ("?", "broken", "RuntimeError: no GPU", "broken-rft 0.3")
    assert registry.entry("reward", "acme").state == "ok"
    assert "acme" in registry.names("reward")
    assert "broken" not in registry.names("engine")
    with pytest.raises(
        PluginBrokenError, match=r"engine 'broken' of broken-rft 0.3 is installed but broken: RuntimeError: no GPU"
    ) as caught:
        registry.entry("engine", "broken")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_unknown_name_mentions_the_broken_plugin_that_may_have_brought_it(install):
    install("broken-rft", version="0.3", broken_b="raise RuntimeError('no GPU')")
    with pytest.raises(
        PluginNotInstalledError, match=r"unknown engine 'acme'.*broken-rft 0.3 is broken and may provide it: RuntimeError: no GPU"
    ):
        Registry.discover().entry("engine", "acme")


HOOK = "from lightrft.plugins import hookimpl, PluginSpec, RewardSpec\n@hookimpl\ndef lightrft_plugins():\n    "


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (HOOK + "return 42", "TypeError: its hook returned 42, which is not a list of specs"),
        (HOOK + "return 'acme'", "TypeError: its hook returned 'acme', which is not a list of specs"),
        (
            HOOK + "return [None]",
            "TypeError: its hook returned None in its list, which is not a spec (possible: StrategySpec, EngineSpec, ",
        ),
        (HOOK + "return [PluginSpec(name='x', target='a:b')]", "TypeError: its hook returned PluginSpec("),
        (HOOK + "return []", "ValueError: it implements no `lightrft_plugins` hook that returns a spec"),
        (HOOK + "return None", "ValueError: it implements no `lightrft_plugins` hook that returns a spec"),
        (HOOK + "raise OSError('disk')", "OSError: disk"),
        (HOOK + "return [RewardSpec(name=' x', target='a:b')]", "ValueError: plugin name ' x' is empty or has spaces around it"),
        (HOOK + "return [RewardSpec(name='x', target='a.b')]", "ValueError: plugin 'x': target 'a.b' is not of the form"),
        (HOOK + "return [RewardSpec(name='x', target='a:b', api='1')]", "ValueError: plugin 'x': api '1' is not an int"),
        (
            HOOK + "return [RewardSpec(name='x', target='a:b', capabilities=['fly'])]",
            "ValueError: plugin 'x': 'fly' is not a Capability (known: ",
        ),
        ("import lightrft_no_such_module", "ModuleNotFoundError: No module named 'lightrft_no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "ValueError: it implements no `lightrft_plugins` hook that returns a spec"),
        ("from lightrft.plugins import hookimpl\n@hookimpl\ndef lightrft_pluginz(): return []", "PluginValidationError: "),
        ("def (", "SyntaxError: "),
    ],
)
def test_garbage_breaks_only_its_own_row(install, plugin_source, source, reason):
    install("garbage-rft", garbage=source)
    install("acme-rft", acme=plugin_source())
    registry = Registry.discover()
    row = next(r for r in registry.entries() if r.provider.distribution == "garbage-rft")
    assert row.state == "broken"
    assert row.reason.startswith(reason)
    assert "\n" not in row.reason
    assert registry.names("reward")[0] == "acme"


def test_a_malformed_entry_points_file_breaks_only_its_own_row(install, plugin_source):
    install("garbage-rft", entry_points="[lightrft.plugins]\nno equals sign\n")
    install("stranger", entry_points="[console_scripts]\nno equals sign\n")
    install("acme-rft", acme_beside=plugin_source())
    registry = Registry.discover()
    broken = [(str(row.provider), row.state) for row in registry.entries() if row.state != "ok" and row.kind == "?"]
    assert ("garbage-rft 1.0", "broken") in broken
    assert not any("stranger" in name for name, _ in broken)
    assert registry.entry("reward", "acme").state == "ok"


def test_a_distribution_without_metadata_is_still_shown(install, plugin_source, tmp_path):
    site = install("bare-rft", acme_bare=plugin_source())
    metadata = tmp_path / site / "bare_rft-1.0.dist-info" / "METADATA"
    metadata.unlink()
    assert Registry.discover().entry("reward", "acme").spec is not None


@pytest.mark.parametrize(
    ("target", "code", "reason"),
    [
        ("lightrft_no_such_module:f", "", "ModuleNotFoundError: No module named 'lightrft_no_such_module'"),
        ("lazy_raises:f", "raise RuntimeError('needs CUDA')", "RuntimeError: needs CUDA"),
        ("lazy_exits:f", "raise SystemExit('bye')", "SystemExit: bye"),
        ("lazy_empty:f", "", "AttributeError: module 'lazy_empty' has no attribute 'f'"),
    ],
)
def test_a_target_that_fails_on_first_use_says_which_and_chains_its_error(install, plugin_source, target, code, reason):
    module = target.split(":")[0]
    install(
        "acme-rft",
        version="2.1",
        **{f"plugin_of_{module}": plugin_source(target=target)},
        **({module: code} if "no_such" not in module else {}),
    )
    registry = Registry.discover()
    assert registry.entry("reward", "acme").state == "ok"
    with pytest.raises(PluginBrokenError) as caught:
        registry.load("reward", "acme")
    assert str(caught.value) == f"reward 'acme' of acme-rft 2.1 is installed but broken: {target}: {reason}"
    assert type(caught.value.__cause__).__name__ == reason.split(":")[0]


# ---- two of one name ---------------------------------------------------------------------------------------------------------------------


def test_a_conflict_names_both_distributions_and_versions(install, plugin_source):
    install("acme-rft", version="1.4", acme_first=plugin_source())
    install("emca-rft", version="0.2", acme_second=plugin_source())
    registry = Registry.discover()
    assert "acme" not in registry.names("reward")
    assert "exact_match" in registry.names("reward")
    with pytest.raises(PluginConflictError) as caught:
        registry.load("reward", "acme")
    text = str(caught.value)
    assert "acme-rft 1.4" in text
    assert "emca-rft 0.2" in text
    assert text.startswith("reward 'acme': provided by ")
    assert text.endswith(": uninstall all but one")


def test_a_third_party_cannot_take_a_built_in_name(install, plugin_source):
    install("acme-rft", acme_takes_hf=plugin_source("EngineSpec", name="hf"))
    with pytest.raises(PluginConflictError, match=r"acme-rft 1.0.*lightrft|lightrft.*acme-rft 1.0"):
        Registry.discover().entry("engine", "hf")


def test_one_name_for_two_kinds_is_no_conflict(install, plugin_source):
    install("acme-rft", acme_r=plugin_source("RewardSpec"))
    install("emca-rft", acme_e=plugin_source("EngineSpec"))
    registry = Registry.discover()
    assert registry.entry("reward", "acme").state == registry.entry("engine", "acme").state == "ok"


def test_a_second_copy_of_one_distribution_further_down_the_path_is_hidden(install, plugin_source):
    install("acme-rft", version="1.0", acme_old=plugin_source(name="acme"))
    install("acme-rft", version="2.0", acme_new=plugin_source(name="acme"))
    assert str(Registry.discover().entry("reward", "acme").provider) == "acme-rft 2.0"


def test_nothing_is_cached_between_registries(install, plugin_source):
    before = Registry.discover()
    install("acme-rft", acme_late=plugin_source())
    assert "acme" not in before.names("reward")
    assert "acme" in Registry.discover().names("reward")
