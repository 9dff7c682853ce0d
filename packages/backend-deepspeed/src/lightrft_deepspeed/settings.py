"""The configuration that DeepSpeed gets. Everything that it would decide by itself and that the update depends on is decided here."""

from __future__ import annotations

from typing import Any

from lightrft.config.schema import Config

REDUCE_BUCKET = 50_000_000
"""Elements; DeepSpeed allocates a buffer of this size, so its default of 500 million would cost 2 GB."""


def deepspeed_settings(config: Config, *, pinned: bool) -> dict[str, Any]:
    """The configuration of `deepspeed.initialize`; `pinned` says whether offloaded state lies in pinned memory."""
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "reduce_bucket_size": REDUCE_BUCKET,
        "stage3_param_persistence_threshold": 0,  # every parameter is sharded, small ones too
    }
    if config.adam_offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # not known here, and used for throughput only
        "gradient_accumulation_steps": 1,  # the strategy marks the last micro-batch of each step itself
        "gradient_clipping": 0.0,  # off; the strategy sets the norm of each step
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW also in host memory: the same update, nothing to compile
        "steps_per_print": 10**9,
    }
    if config.bf16:
        settings |= {
            "bf16": {"enabled": True},  # computes in bfloat16, steps on float32 masters
            "data_types": {"grad_accum_dtype": "fp32"},  # the default is the model's, and small micro-batches would be lost
            "communication_data_type": "fp32",  # likewise for the sum over ranks
        }
    return settings
