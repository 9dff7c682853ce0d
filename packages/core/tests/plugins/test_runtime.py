"""A plugin whose library is missing, or too old, is refused in one line with its remedy, before anything of it is imported."""

import sys

import pytest

from lightrft.errors import PluginRuntimeError
from lightrft.plugins import Registry

ENGINE = """
from lightrft.plugins import EngineSpec, Runtime, hookimpl

@hookimpl
def lightrft_plugins():
    runtime = Runtime(distributions=("fastgen", "fastgen-cpu"), versions=">=0.25,<0.33")
    return [EngineSpec(name="fast", target="fast_code:Engine", runtime=runtime)]
"""


def test_a_missing_library_names_the_extra_that_brings_it(install):
    install("fast-plugin", fast_plugin=ENGINE, fast_code="Engine = object\n")
    with pytest.raises(PluginRuntimeError) as caught:
        Registry.discover().load("engine", "fast")
    assert str(caught.value) == (
        "engine 'fast' of fast-plugin 1.0 needs fastgen or fastgen-cpu >=0.25,<0.33, which is not installed: "
        "pip install 'fast-plugin[runtime]'"
    )
    assert "fast_code" not in sys.modules


@pytest.mark.parametrize("version", ["0.24.9", "0.33.0"])
def test_a_version_outside_the_range_is_named_with_it(install, version):
    install("fast-plugin", fast_plugin=ENGINE)
    install("fastgen-cpu", version=version, entry_points="")
    with pytest.raises(PluginRuntimeError, match=f"needs fastgen or fastgen-cpu >=0.25,<0.33, found fastgen-cpu {version}"):
        Registry.discover().entry("engine", "fast")


@pytest.mark.parametrize("version", ["0.25.1", "0.32.0+cpu", "0.30.0rc1"])
def test_a_version_inside_the_range_is_usable(install, version):
    install("fast-plugin", fast_plugin=ENGINE, fast_code="from lightrft.testing.fake_engine import FakeEngine as Engine\n")
    install("fastgen", version=version, entry_points="")
    registry = Registry.discover()
    assert registry.entry("engine", "fast").state == "ok"
    assert registry.load("engine", "fast").__name__ == "FakeEngine"
