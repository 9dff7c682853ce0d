"""SGLang's options: the fields of its ServerArgs, which stand in several files, and those that LightRFT sets."""

from __future__ import annotations

import ast

from lightrft.plugins.engine_options import EngineOptions, fields_of, source_of

OURS = {
    "model_path": "model_name_or_path", "tokenizer_path": "model_name_or_path", "dtype": "bf16", "random_seed": "seed",
    "context_length": "prompt_max_len and generate_max_len", "trust_remote_code": "trust_remote_code", "tp_size": "engine_tp_size",
    "pp_size": "engine_tp_size", "dp_size": "nproc_per_node", "mem_fraction_static": "engine_mem_util",
    "enable_memory_saver": "enable_engine_sleep", "enable_weights_cpu_backup": "engine_sleep_level", "json_model_override_args": "",
    "skip_tokenizer_init": "", "skip_server_warmup": "", "custom_weight_loader": "", "device": "", "base_gpu_id": "", "nnodes": "",
    "node_rank": "",
}  # fmt: skip


def options() -> EngineOptions:
    """Of the SGLang that is installed here; nothing of it is imported."""
    found: dict[str, str] = {}
    for file in sorted(source_of("sglang", "srt", "arg_groups", "fields").glob("*.py")):
        found |= {name: _plain(text) for name, text in fields_of(file).items()}
    return EngineOptions(types=found, ours=OURS, example={"max_running_requests": 96})


def _plain(annotation: str) -> str:
    """`A[int, "help"]` as `int`."""
    node = ast.parse(annotation, mode="eval").body
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "A" and isinstance(node.slice, ast.Tuple):
        return ast.unparse(node.slice.elts[0])
    return annotation
