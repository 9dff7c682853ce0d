"""What the plugin declares."""

from __future__ import annotations

import subprocess
import sys

from lightrft.plugins import Registry


def test_the_plugin_declares_what_it_does_and_loads_no_torch() -> None:
    entry = Registry.discover().entry("strategy", "deepspeed")
    assert entry.provider.distribution == "lightrft-backend-deepspeed"
    assert entry.spec is not None
    assert sorted(entry.spec.capabilities) == ["adam_offload", "bf16", "frozen_offload", "multi_rank", "sharded_frozen", "zero_stages"]
    heavy = "{'torch', 'transformers', 'deepspeed'}"
    code = f"import sys, lightrft_deepspeed.plugin as p; p.lightrft_plugins(); print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
