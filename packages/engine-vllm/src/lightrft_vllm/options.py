"""vLLM's options: the fields of its EngineArgs, and those that LightRFT sets."""

from __future__ import annotations

from lightrft.plugins.engine_options import EngineOptions, fields_of, source_of

OURS = {
    "model": "model_name_or_path", "tokenizer": "model_name_or_path", "dtype": "bf16", "seed": "seed",
    "max_model_len": "prompt_max_len and generate_max_len", "trust_remote_code": "trust_remote_code",
    "tensor_parallel_size": "engine_tp_size",
    "gpu_memory_utilization": "engine_mem_util", "enable_sleep_mode": "enable_engine_sleep", "distributed_executor_backend": "",
    "pipeline_parallel_size": "engine_tp_size", "data_parallel_size": "nproc_per_node", "skip_tokenizer_init": "", "generation_config": "",
    "override_generation_config": "temperature, top_p, top_k and stop_token_ids", "logprobs_mode": "", "use_tqdm_on_load": "",
    "enable_lora": "lora_sync", "max_lora_rank": "lora_rank", "max_loras": "", "max_cpu_loras": "", "lora_dtype": "",
    "default_mm_loras": "", "fully_sharded_loras": "", "lora_target_modules": "lora_target_modules", "enable_tower_connector_lora": "",
    "hf_config_path": "model_name_or_path", "model_weights": "model_name_or_path", "runner": "", "convert": "",
    "mm_processor_cache_gb": "",
}  # fmt: skip


def options() -> EngineOptions:
    """Of the vLLM that is installed here; nothing of it is imported."""
    return EngineOptions(
        types=fields_of(source_of("vllm", "engine", "arg_utils.py"), name="EngineArgs"), ours=OURS, example={"max_num_seqs": 96}
    )
