"""The doctor names what is there, what is lacking, and the command that mends it."""

from __future__ import annotations

import json
import subprocess
import sys

from lightrft.cli.doctor import examine
from lightrft.plugins import EngineSpec, PluginEntry, Registry, Runtime
from lightrft.plugins.registry import Provider


def test_it_names_what_mends_each_plugin() -> None:
    provider = Provider(distribution="fast-plugin", version="1.0", entry_point="fast")
    reason = "needs fastgen >=1, which is not installed: pip install 'fast-plugin[runtime]'"
    spec = EngineSpec(name="fast", target="a:b", runtime=Runtime(distributions=("fastgen",), versions=">=1"))
    rows = examine(Registry([PluginEntry(provider=provider, spec=spec, state="no runtime", reason=reason)]))["plugins"]
    found = {row["name"]: row for row in rows}
    assert found["fast"]["state"] == "no runtime" and found["fast"]["fix"] == "pip install 'fast-plugin[runtime]'"
    assert found["fast"]["needs"] == "fastgen >=1" and found["fast"]["library"] == ""
    assert found["vllm"]["state"] == "not installed" and found["vllm"]["fix"] == "pip install 'lightrft[vllm]'"


def run(*words: str) -> str:
    return subprocess.run([sys.executable, "-m", "lightrft.cli.main", "doctor", *words], capture_output=True, text=True, check=True).stdout


def test_the_command_prints_tables_and_one_json_object() -> None:
    shown = run()
    assert "what mends it" in shown and "GPUs: " in shown
    found = json.loads(run("--json").splitlines()[-1])
    assert {row["name"] for row in found["plugins"]} >= {"single", "hf", "vllm", "sglang", "fsdp", "deepspeed"}
    assert found["libraries"]["torch"]
