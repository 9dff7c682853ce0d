"""What this distribution adds: the engine `sglang`."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.plugins import Capability, EngineSpec, PluginSpec, Runtime, hookimpl

NO_ADAPTERS = "its LoRA layers ask for pinned memory, which it has with CUDA alone, where nobody has run it"


@hookimpl
def lightrft_plugins() -> Sequence[PluginSpec]:
    return [
        EngineSpec(
            name="sglang",
            target="lightrft_sglang.engine:SGLangEngine",
            topology="single_leader",
            runtime=Runtime(distributions=("sglang",), versions=">=0.5.21,<0.5.22"),
            capabilities=frozenset(
                {
                    Capability.TENSOR_PARALLEL,
                    Capability.LOGPROBS,
                    Capability.STOP_STRINGS,
                    Capability.MIN_P,
                    Capability.MEM_UTIL,
                    Capability.WEIGHT_CHECKSUMS,
                    Capability.MULTIMODAL,
                    Capability.STEPPING,
                    Capability.SLEEP_1,
                }
            ),
            cuda_only=frozenset({Capability.SLEEP_1, Capability.MEM_UTIL}),
            cuts_heads=True,
            why_not={Capability.ADAPTERS: NO_ADAPTERS},
            options="lightrft_sglang.options:options",
            summary="SGLang on the first rank of its group, schedulers in processes of their own; run on CPUs, on CUDA not yet",
        )
    ]
