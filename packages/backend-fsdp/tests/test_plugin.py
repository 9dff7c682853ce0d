"""What the plugin declares."""

from __future__ import annotations

import subprocess
import sys

from lightrft.plugins import Registry


def test_the_plugin_declares_what_it_does_and_loads_no_torch() -> None:
    entry = Registry.discover().entry("strategy", "fsdp")
    assert entry.provider.distribution == "lightrft-backend-fsdp"
    assert entry.spec is not None
    assert sorted(entry.spec.capabilities) == [
        "bf16", "frozen_offload", "mixed_precision_optimizer", "multi_rank", "optimizer_offload", "reshard_policy", "sharded_frozen",
    ]  # fmt: skip
    code = "import sys, lightrft_fsdp.plugin as p; p.lightrft_plugins(); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
