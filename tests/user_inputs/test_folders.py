"""Model folders as users bring them: each is taken as what it is, or refused in one line before a rank starts, with what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_family
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from lightrft.config.load import make_config
from lightrft.models.folder_check import folder_problem
from lightrft.models.load import open_causal_lm
from lightrft.plugins.registry import Registry
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.tiny import tiny_model_folder, tiny_reward_folder
from lightrft.trainer.preflight import preflight_problems

IDS = torch.arange(3, 30)[None]
Change = Callable[[Path], None]
ENGINE = "vllm" if find_spec("vllm") else "hf"
"""In vLLM's environment the same is asked of runs with vLLM."""
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("whole") / "m", family="llama")


@pytest.fixture
def folder(tmp_path: Path, whole: Path, request: pytest.FixtureRequest) -> Path:
    made = Path(shutil.copytree(whole, tmp_path / "m"))
    CASES[request.getfixturevalue("name")].change(made)
    return made


def found_before_ranks(folder: Path, tmp_path: Path, **settings: Any) -> list[str]:
    """What every door says before a model loads."""
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "7+7=", "answer": "14"}\n')
    values = {"strategy": "single", "engine_type": ENGINE, "model_name_or_path": str(folder), "prompt_data": str(data)}
    values |= {
        "output_dir": str(tmp_path / "run"),
        "rollout_batch_size": 1,
        "train_batch_size": 8,
        "prompt_max_len": 32,
        "generate_max_len": 8,
    }
    return preflight_problems(make_config(values | settings), mode="train", registry=Registry.discover(), world_size=1)


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_taken_or_refused_before_ranks_start(tmp_path: Path, folder: Path, name: str) -> None:
    found = found_before_ranks(folder, tmp_path, trust_remote_code=CASES[name].trust_remote_code)
    if not CASES[name].refused:
        assert found == []
        return
    [line] = found
    assert line.startswith(f"model_name_or_path={str(folder)!r}") and "\n" not in line
    assert all(words in line for words in CASES[name].refused), line


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_has_the_values_of_transformers(tmp_path: Path, folder: Path, name: str) -> None:
    trust = CASES[name].trust_remote_code
    expected: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust).eval()
    strategy = get_strategy(make_config({"strategy": "single"}))
    opened = open_causal_lm(folder, dtype=torch.float32, trust_remote_code=trust)
    actor, _ = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
    with torch.no_grad():
        assert torch.equal(actor(IDS).logits, expected(IDS).logits)
        strategy.save_model(actor, tmp_path / "saved")
        again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32, trust_remote_code=trust)
        assert torch.equal(again(IDS).logits, expected(IDS).logits)
    strategy.shutdown()


@pytest.mark.parametrize("path", ["./nope", "nope", "a/b/c", "/no/where", "../m"])
def test_one_rule_for_a_path_that_is_not_there(tmp_path: Path, whole: Path, path: str) -> None:
    words = "no such folder, and not a hub name of the form owner/name"
    critic = {"advantage_estimator": "gae", "critic_model_name_or_path": path}
    assert found_before_ranks(whole, tmp_path, **critic) == [f"critic_model_name_or_path={path!r}: {words}"]
    assert found_before_ranks(whole, tmp_path, reward=[f"model:{path}"]) == [f"reward='model:{path}': {words}"]
    assert found_before_ranks(Path(path), tmp_path, model_name_or_path=path) == [f"model_name_or_path={path!r}: {words}"]


@pytest.mark.parametrize(
    ("file", "words"), [("modeling_own.py", "gives no model: SystemExit: 3"), ("configuration_own.py", "cannot be used: SystemExit: 3")]
)
def test_own_code_that_ends_the_process_is_told(tmp_path: Path, whole: Path, file: str, words: str) -> None:
    made = Path(shutil.copytree(whole, tmp_path / file.replace(".", "_")))  # transformers keeps code by the name of its folder
    both(OWN_CODE, text(file, "raise SystemExit(3)\n"))(made)
    [line] = found_before_ranks(made, tmp_path, trust_remote_code=True)
    assert words in line


@pytest.mark.parametrize("is_decoder", [False, True])
def test_an_encoder_is_a_policy_only_as_a_decoder(tmp_path: Path, whole: Path, is_decoder: bool) -> None:
    made = Path(shutil.copytree(whole, tmp_path / "m"))
    (made / WEIGHTS).unlink()
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertLMHeadModel(BertConfig(vocab_size=64, pad_token_id=0, eos_token_id=1, is_decoder=is_decoder, **sizes)).save_pretrained(made)
    found = found_before_ranks(made, tmp_path)
    assert found == [] if is_decoder else "is that of an encoder (bert), which reads in both directions" in found[0]


def test_folders_of_critic_and_reward_models_are_looked_at_too(tmp_path: Path, whole: Path) -> None:
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    truncated(WEIGHTS, 30_000)(broken)
    critic = {"advantage_estimator": "gae", "critic_model_name_or_path": str(broken)}
    [line] = found_before_ranks(whole, tmp_path, **critic)
    assert line.startswith("critic_model_name_or_path=") and "is cut off" in line
    [line] = found_before_ranks(whole, tmp_path, reward=[f"rm=model:{broken}"])
    assert line.startswith(f"reward='rm=model:{broken}'") and "is cut off" in line
    [line] = found_before_ranks(whole, tmp_path, reward=[f"model:{whole}"])
    assert "lack score.weight" in line, "a causal model is no sequence classifier"
    assert found_before_ranks(whole, tmp_path, reward=[f"model:{tiny_reward_folder(tmp_path / 'rm')}"]) == []
    assert "lm_head.weight" in folder_problem("m", str(tmp_path / "rm"))
    assert folder_problem("m", str(tmp_path / "rm"), auto_class=AutoModelForSequenceClassification) == ""


def test_a_token_beyond_the_embedding_is_told_with_its_row(tmp_path: Path, whole: Path) -> None:
    from transformers import AutoTokenizer

    made = Path(shutil.copytree(whole, tmp_path / "m"))
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokenizer.add_tokens([f"<|new{i}|>" for i in range(64)])
    tokenizer.save_pretrained(made)
    assert found_before_ranks(made, tmp_path) == [], "tokens that no prompt holds"
    (tmp_path / "new.jsonl").write_text('{"prompt": "7", "answer": "1"}\n{"prompt": "<|new63|>7", "answer": "1"}\n')
    [line] = found_before_ranks(made, tmp_path, prompt_data=str(tmp_path / "new.jsonl"))
    assert "new.jsonl:2: the prompt has token" in line and "('<|new63|>'), and the model's embedding has 64 rows" in line


@pytest.mark.parametrize("family", ["mixtral", "gpt-neox", "granite-moe", "gemma3", "gpt2", "deepseek-v3", "gemma4", "apertus"])
def test_no_false_alarm_for_a_whole_folder_of_any_family(tmp_path: Path, family: str) -> None:
    make_family(family).save_pretrained(tmp_path)
    assert folder_problem("m", str(tmp_path)) == ""


def test_masks_of_older_versions_are_no_weights(tmp_path: Path) -> None:
    make_family("gpt2").save_pretrained(tmp_path)
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8), "transformer.h.0.attn.masked_bias": torch.tensor(-1e9)}
    weights(lambda state: state | masks)(tmp_path)
    assert folder_problem("m", str(tmp_path)) == ""


def test_dtypes_of_torch_s_own_format_are_those_of_the_saved_folder(tmp_path: Path, whole: Path) -> None:
    made = Path(shutil.copytree(whole, tmp_path / "m"))
    as_bin(lambda state: {name: t.bfloat16() for name, t in state.items()})(made)
    strategy = get_strategy(make_config({"strategy": "single"}))
    opened = open_causal_lm(made, dtype=torch.float32)
    actor, _ = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
    strategy.save_model(actor, tmp_path / "saved", source=made)
    strategy.shutdown()
    assert {t.dtype for t in load_file(tmp_path / "saved" / WEIGHTS).values()} == {torch.bfloat16}


def test_an_expert_that_is_missing_is_told(tmp_path: Path) -> None:
    make_family("mixtral").save_pretrained(tmp_path)
    lost = next(name for name in load_file(tmp_path / WEIGHTS) if "experts.3" in name)
    weights(lambda state: state.pop(lost) is None)(tmp_path)
    assert "weight files lack model.layers.0.mlp.experts" in folder_problem("m", str(tmp_path))


def test_a_tied_model_of_save_pretrained_is_whole(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                                 tie_word_embeddings=True)).save_pretrained(tmp_path)  # fmt: skip
    assert folder_problem("m", str(tmp_path)) == ""


def test_adapters_that_a_model_cannot_have_are_told_before_ranks_start(tmp_path: Path, whole: Path) -> None:
    assert found_before_ranks(whole, tmp_path, lora_rank=2) == []
    [line] = found_before_ranks(whole, tmp_path, lora_rank=2, lora_target_modules=["c_attn"])
    assert "LlamaForCausalLM has no linear layer called c_attn" in line


def test_a_pattern_that_freezes_nothing_or_everything_is_told_before_ranks_start(tmp_path: Path, whole: Path) -> None:
    assert found_before_ranks(whole, tmp_path, freeze=r"layers\.0\.|lm_head") == []
    assert found_before_ranks(whole, tmp_path, freeze=r"layers\.0\.", lora_rank=2) == []
    [line] = found_before_ranks(whole, tmp_path, freeze="q_prj")
    assert line.startswith("freeze='q_prj' matches no name of a parameter that LlamaForCausalLM trains (lm_head.weight, ")
    assert line.endswith("; did you mean 'q_proj'?") and "\n" not in line
    [line] = found_before_ranks(whole, tmp_path, freeze="weight$")
    assert line.startswith("freeze='weight$' matches every parameter that LlamaForCausalLM trains")
    [line] = found_before_ranks(whole, tmp_path, freeze="embed", lora_rank=2)
    assert "matches no name of a parameter that LlamaForCausalLM trains (model.layers.0.mlp" in line  # adapters alone are trained
    [line] = found_before_ranks(Path(""), tmp_path, freeze="visual", model_name_or_path="", scratch_tokenizer="char")
    assert line.startswith("freeze='visual' matches no name of a parameter that Qwen3ForCausalLM trains (")
