"""Model folders as users bring them: what is done to a whole one, and the words with which it is refused; a table for `test_folders`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

Change = Callable[[Path], None]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Case:
    """What is done to a whole folder, and words of the line that refuses it; none: the folder is taken."""

    change: Change
    refused: tuple[str, ...] = ()
    trust_remote_code: bool = False


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8") and None


def config(**values: Any) -> Change:
    """Values in config.json; None takes one out."""

    def change(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps({name: value for name, value in found.items() if value is not None}))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Another state dict, where `change` returns one or changes the one that it is given."""

    def changed(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        save_file(change(state) or state, folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def truncated(name: str, size: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def removed(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes] and None


def sharded(folder: Path) -> None:
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="60KB")
    (folder / WEIGHTS).unlink(missing_ok=True)


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def without_metadata(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["metadata"]
    (folder / INDEX).write_text(json.dumps(index))


def as_bin(change: Callable[[dict[str, torch.Tensor]], Any] = lambda state: None) -> Change:
    """In torch's own format, where `change` returns what is saved or changes the state dict."""

    def changed(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        torch.save(change(state) or state, folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()

    return changed


def header(change: Callable[[dict[str, Any]], None], *, behind: bytes = b"") -> Change:
    """Another header of the weight file, and bytes behind its tensors."""

    def changed(folder: Path) -> None:
        held = (folder / WEIGHTS).read_bytes()
        size = int.from_bytes(held[:8], "little")
        found = json.loads(held[8 : 8 + size])
        change(found)
        text = json.dumps(found).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + held[8 + size :] + behind)

    return changed


def twice(found: dict[str, Any]) -> None:
    """The bytes of one norm are those of the next as well."""
    norms = [name for name in found if name.endswith("input_layernorm.weight")]
    found[norms[1]]["data_offsets"] = found[norms[0]]["data_offsets"]


def beside_its_shards(folder: Path) -> None:
    one = (folder / WEIGHTS).read_bytes()
    sharded(folder)
    (folder / WEIGHTS).write_bytes(one)


class Runs:
    """What no reader of tensors makes."""

    def __reduce__(self) -> Any:
        return (print, ("code of a weight file was run",))


def tied(*, equal: bool) -> Change:
    def change(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        if equal:
            state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        config(tie_word_embeddings=True)(folder)

    return change


def without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def quantised(method: str, **more: Any) -> Change:
    return config(quantization_config={"quant_method": method, **more})


def packed(suffix: str, dtype: torch.dtype) -> Change:
    """The first projection in another form, and nothing in config.json says so."""

    def change(state: dict[str, torch.Tensor]) -> None:
        del state["model.layers.0.self_attn.q_proj.weight"]
        state[f"model.layers.0.self_attn.q_proj.{suffix}"] = torch.zeros(8, 8).to(dtype)

    return weights(change)


OWN_CODE = both(
    config(
        model_type="own_llama",
        auto_map={"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    ),
    text("configuration_own.py", "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"),
    text(
        "modeling_own.py",
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n",
    ),
)
QUANTISED = ("quantised", "give the model that it was made from")
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"

CASES: dict[str, Case] = {
    # taken, with the right values
    "as save_pretrained wrote it": Case(lambda folder: None),
    "several files and an index": Case(sharded),
    "torch's own format": Case(as_bin()),
    "torch's own format beside a variant that nothing names": Case(
        both(lambda folder: shutil.copyfile(folder / WEIGHTS, folder / "model.fp16.safetensors") and None, as_bin())
    ),
    "torch's own format, a tied head stored too": Case(
        both(as_bin(lambda s: s | {"lm_head.weight": s["model.embed_tokens.weight"]}), config(tie_word_embeddings=True))
    ),
    "bfloat16 on disk, float32 in config.json": Case(
        both(weights(lambda state: {name: t.bfloat16() for name, t in state.items()}), config(dtype="float32"))
    ),
    "float32 on disk, bfloat16 in config.json": Case(config(dtype=None, torch_dtype="bfloat16")),
    "names without the model's prefix": Case(weights(without_prefix)),
    "rotary tables of older versions": Case(weights(lambda s: s | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})),
    "a tied head that is stored too, with the same values": Case(tied(equal=True)),
    "own code, with trust_remote_code": Case(OWN_CODE, trust_remote_code=True),
    "a generation_config that transformers would not save": Case(text("generation_config.json", '{"temperature": 0.6, "eos_token_id": 1}')),
    # damaged
    "config.json is garbage": Case(text("config.json", "{not json"), ("config.json is damaged", "JSONDecodeError")),
    "config.json is empty": Case(text("config.json", ""), ("config.json is damaged: it is empty",)),
    "config.json is a list": Case(text("config.json", "[1]"), ("config.json is damaged", "expected an object")),
    "config.json without model_type": Case(config(model_type=None), ("names no model_type",)),
    "an unknown model_type": Case(config(model_type="lamma"), ("model_type 'lamma' is not known to transformers",)),
    "a field of another type": Case(config(hidden_size="large"), ("its config.json",)),
    "answers in tuples": Case(config(return_dict=False), ("config.json has return_dict=false", "take the entry out")),
    "what transformers does not save": Case(config(output_attentions=True), ("transformers would not save its config.json again",)),
    "negative sizes": Case(config(num_hidden_layers=-1), ("its ",)),
    "a pipe for config.json": Case(both(removed("config.json"), lambda folder: os.mkfifo(folder / "config.json")), ("no config.json",)),
    "no config.json": Case(removed("config.json"), ("no config.json", "save_pretrained")),
    "generation_config.json is garbage": Case(text("generation_config.json", "eos: 1"), ("generation_config.json is damaged",)),
    "tokenizer.json is garbage": Case(text("tokenizer.json", "{"), ("tokenizer.json is damaged",)),
    "tokenizer.json of nothing": Case(text("tokenizer.json", "{}"), ("tokenizer", "cannot be loaded")),
    "no tokenizer": Case(removed("tokenizer.json", "tokenizer_config.json"), ("the folder has no tokenizer",)),
    "weights cut off": Case(truncated(WEIGHTS, 30_000), ("model.safetensors is cut off: 30000 bytes", "copy it again")),
    "weights cut off in the header": Case(truncated(WEIGHTS, 100), ("model.safetensors is damaged",)),
    "weights empty": Case(truncated(WEIGHTS, 0), ("model.safetensors is damaged: it is empty",)),
    "weights of a page that was not found": Case(text(WEIGHTS, "<html>404</html>" * 99), ("model.safetensors is damaged",)),
    "no weights": Case(removed(WEIGHTS), ("the folder has no weights",)),
    "an index that names a missing file": Case(without_a_shard, (f"{INDEX} names model-00002", "which is missing")),
    "an index of garbage": Case(both(sharded, text(INDEX, "{}")), (f"{INDEX} is damaged",)),
    "an index that names what is not there": Case(
        both(text(INDEX, json.dumps({"metadata": {}, "weight_map": {"no.such": WEIGHTS}}))), (f"{INDEX} says", "no.such", "not in it")
    ),
    "an index that names a file elsewhere": Case(
        text(INDEX, json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": "../other/model.safetensors"}})),
        (f"{INDEX} names '../other/model.safetensors', which is outside of the folder",),
    ),
    "an index without what transformers asks of one": Case(
        both(sharded, without_metadata), (f'{INDEX} has no "metadata"', "transformers does not load it")
    ),
    "files without their index": Case(both(sharded, removed(INDEX)), ("copy the index too",)),
    "bytes of two tensors": Case(header(twice), ("model.safetensors is damaged: ", "begins at byte", "copy it again")),
    "a shape that is no whole number": Case(header(lambda h: h[Q_PROJ].update(shape=[64.5, 64])), ("model.safetensors is damaged",)),
    "a negative shape": Case(header(lambda h: h[Q_PROJ].update(shape=[-64, -64])), ("model.safetensors is damaged",)),
    "notes of a header that are no text": Case(header(lambda h: h.update(__metadata__={"format": 5})), ("model.safetensors is damaged",)),
    "bytes behind the last tensor": Case(header(lambda found: None, behind=b"more"), ("damaged: ", "its last tensor ends at")),
    "one file beside an index of others": Case(beside_its_shards, (f"{WEIGHTS} lies beside {INDEX}", "take one of the two out")),
    "JSON nested too deeply": Case(text("config.json", '{"a":' * 2000 + "1" + "}" * 2000), ("config.json is damaged: RecursionError",)),
    "an end of sequence that is text": Case(
        text("generation_config.json", '{"eos_token_id": "</s>"}'), ("eos_token_id='</s>' is no token id and no list of them",)
    ),
    "a length of the tokenizer that is text": Case(text("tokenizer_config.json", '{"model_max_length": "big"}'), ("cannot be loaded",)),
    "torch's own format, cut off": Case(both(as_bin(), truncated("pytorch_model.bin", 999)), ("pytorch_model.bin is damaged",)),
    "torch's own format, a matrix is missing": Case(as_bin(lambda s: s.pop(Q_PROJ) is None), (f"lack {Q_PROJ}",)),
    "torch's own format, another shape": Case(
        as_bin(lambda s: s | {Q_PROJ: torch.ones(8, 64)}), ("is [8, 64] in the files, and config.json asks for [64, 64]",)
    ),
    "torch's own format, a tensor too many": Case(
        as_bin(lambda s: s | {"v_head.weight": torch.ones(1)}), ("v_head.weight", "would ignore")
    ),
    "torch's own format, a sparse tensor": Case(as_bin(lambda s: s | {Q_PROJ: s[Q_PROJ].to_sparse()}), ("in the layout sparse_coo",)),
    "torch's own format, a tensor without values": Case(as_bin(lambda s: s | {Q_PROJ: s[Q_PROJ].to("meta")}), ("without values",)),
    "torch's own format of a trainer": Case(as_bin(lambda s: {"model": s, "step": 3}), ("holds a dict as 'model', expected a tensor",)),
    "torch's own format with code": Case(as_bin(lambda s: s | {"x": Runs()}), ("holds more than tensors", "save_pretrained")),
    "torch's own format, an index of garbage": Case(
        both(removed(WEIGHTS), text("pytorch_model.bin.index.json", '{"weight_map": 7}')), ("pytorch_model.bin.index.json is damaged",)
    ),
    # of another model
    "more layers than weights": Case(config(num_hidden_layers=3), ("weight files lack", "model.layers.2", "complete folder")),
    "a million layers": Case(config(num_hidden_layers=10**6), ("asks for num_hidden_layers=1000000, and the files hold 21 tensors",)),
    "fewer layers than weights": Case(config(num_hidden_layers=1), ("hold model.layers.1", "does not have and would ignore")),
    "another width": Case(config(hidden_size=128), ("is [64, 64] in the files, and config.json asks for [64, 128]",)),
    "another vocabulary": Case(config(vocab_size=65), ("weight is [64, 64] in the files", "[65, 64] (2 tensors differ)")),
    "a matrix is missing": Case(weights(lambda s: s.pop(Q_PROJ) is None), (f"lack {Q_PROJ}",)),
    "a bias that the architecture has not": Case(
        weights(lambda s: s | {Q_PROJ.replace("weight", "bias"): torch.ones(64)}), ("q_proj.bias", "would ignore")
    ),
    "NaN in a matrix": Case(weights(lambda s: s | {Q_PROJ: s[Q_PROJ] * float("nan")}), (f"hold NaN or infinity in {Q_PROJ}:", "diverged")),
    "infinity in a norm of bfloat16": Case(
        weights(lambda s: s | {"model.norm.weight": torch.full((64,), float("inf")).bfloat16()}), ("infinity in model.norm.weight:",)
    ),
    "NaN everywhere": Case(weights(lambda s: {name: t * float("nan") for name, t in s.items()}), ("and 18 more",)),
    "torch's own format, NaN": Case(as_bin(lambda s: s | {Q_PROJ: s[Q_PROJ] * float("nan")}), (f"infinity in {Q_PROJ}:",)),
    "a tied head with values of its own": Case(tied(equal=False), ("ties lm_head.weight", "set tie_word_embeddings to false")),
    # quantised
    "gptq": Case(quantised("gptq", bits=4), ("(gptq", *QUANTISED)),
    "awq": Case(quantised("awq", bits=4), ("(awq", *QUANTISED)),
    "fp8 in config.json alone": Case(quantised("fp8", weight_block_size=[128, 128]), ("(fp8", "none of its tensors is")),
    "fp8 of another kind": Case(quantised("fp8", fmt="e5m2"), ("(fp8", *QUANTISED)),
    "compressed-tensors": Case(quantised("compressed-tensors"), ("(compressed-tensors", *QUANTISED)),
    "bitsandbytes": Case(quantised("bitsandbytes", load_in_4bit=True), ("(bitsandbytes", *QUANTISED)),
    "mxfp4": Case(quantised("mxfp4"), ("(mxfp4", *QUANTISED)),
    "gptq that only an old file tells": Case(text("quantize_config.json", '{"bits": 4}'), ("quantize_config.json", *QUANTISED)),
    "packed weights that nothing tells": Case(packed("qweight", torch.int32), ("q_proj.qweight is I32", *QUANTISED)),
    "8 bits in torch's own format": Case(as_bin(lambda s: s | {Q_PROJ: s[Q_PROJ].char()}), ("q_proj.weight is I8", *QUANTISED)),
    "whole numbers for a bias": Case(
        both(
            config(attention_bias=True),
            weights(lambda s: s | {n.replace("weight", "bias"): torch.ones(len(t)).long() for n, t in s.items() if "self_attn" in n}),
        ),
        ("_proj.bias is I64", *QUANTISED),
    ),
    "an older name of the entry": Case(config(compression_config={"format": "pack-quantized"}), ("says config.json", *QUANTISED)),
    "an entry that names nothing": Case(config(quantization_config={}), ("quantization_config={}", "take the entry out")),
    "8 bits that nothing tells": Case(packed("weight", torch.int8), ("q_proj.weight is I8", *QUANTISED)),
    "fp8 that nothing tells": Case(packed("weight", torch.float8_e4m3fn), ("q_proj.weight is F8_E4M3", *QUANTISED)),
    "scales that nothing tells": Case(
        weights(lambda s: s | {Q_PROJ.replace("weight", "weight_scale_inv"): torch.ones(1, 1)}), ("weight_scale_inv", *QUANTISED)
    ),
    "gguf": Case(both(removed("config.json", WEIGHTS), text("model-q4.gguf", "GGUF")), ("GGUF", "quantised")),
    "gguf beside config.json": Case(both(removed(WEIGHTS), text("model-q4.gguf", "GGUF")), ("GGUF", "quantised")),
    # adapters and own code
    "an adapter alone": Case(
        both(removed("config.json", WEIGHTS), text("adapter_config.json", '{"peft_type": "LORA"}')), ("adapter alone", "merge")
    ),
    "adapter_config.json beside whole weights": Case(
        text("adapter_config.json", '{"peft_type": "LORA"}'), ("adapter_config.json lies beside whole weights",)
    ),
    "own code, without trust_remote_code": Case(OWN_CODE, ("its own code", "--trust_remote_code")),
    "own code that was not copied": Case(
        both(OWN_CODE, removed("modeling_own.py")), ("modeling_own.py is missing",), trust_remote_code=True
    ),
}
TAKEN = [name for name, case in CASES.items() if not case.refused]
