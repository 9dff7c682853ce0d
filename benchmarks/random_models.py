"""Models of real shapes with random weights, a tokenizer of one word for each id, and prompts of random ids; made on the spot."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

QWEN = {"max_position_embeddings": 32768, "rope_theta": 1e6}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("Qwen3", dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                           intermediate_size=96, vocab_size=512)),
    "small": ("Qwen3", dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
                            intermediate_size=768, vocab_size=4096)),
    "268m": ("Qwen3", dict(hidden_size=1024, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=8, head_dim=64,
                           intermediate_size=3072, vocab_size=32768)),
    "1.5b": ("Qwen3", dict(hidden_size=1536, head_dim=128, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
                           intermediate_size=8960,
                           vocab_size=151936, tie_word_embeddings=True, **QWEN)),
    "3b": ("Qwen3", dict(hidden_size=2048, head_dim=128, num_hidden_layers=36,
                           num_attention_heads=16, num_key_value_heads=2, intermediate_size=11008,
                         vocab_size=151936, tie_word_embeddings=True, **QWEN)),
    "7b": ("Qwen3", dict(hidden_size=3584, head_dim=128, num_hidden_layers=28,
                           num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944,
                         vocab_size=152064, **QWEN)),
}  # fmt: skip
"""tiny and small are for CPUs; TRL was compared on 268m; 1.5b, 3b and 7b have the sizes of Qwen2.5 in the layout of Qwen3."""


def make_model(name: str, folder: Path) -> Path:
    """Writes the model in bfloat16. Returns `folder`."""
    import transformers

    if (folder / "config.json").exists():
        return folder
    family, shape = SHAPES[name]
    config = getattr(transformers, f"{family}Config")(
        **{"tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, **shape}
    )
    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    torch.set_default_dtype(before)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer(shape["vocab_size"]).save_pretrained(folder)
    return folder


def tokenizer(vocab_size: int) -> Any:
    """Words t4, t5, ... for the ids; four special tokens before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, **{f"t{i}": i for i in range(4, vocab_size)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def make_prompts(name: str, file: Path, *, length: int, number: int = 512) -> Path:
    """Writes random prompts of that many tokens as JSON lines. Returns `file`."""
    vocab_size = SHAPES[name][1]["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, vocab_size, (length,), generator=generator).tolist() for _ in range(number)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"prompt": " ".join(f"t{i}" for i in row)}) + "\n" for row in rows), encoding="utf-8")
    return file


def fraction_even(samples: list[Any]) -> list[float]:
    """A reward that a model can learn: the fraction of even ids among the completion's."""
    return [sum(int(word[1:]) % 2 == 0 for word in s.completion.split() if word[0] == "t") / max(1, s.num_tokens) for s in samples]


def workload(name: str, work: Path, *, prompt_len: int, new_tokens: int) -> dict[str, Any]:
    """The settings that name a model, its prompts and its reward; every completion has all of its tokens."""
    return {
        "model_name_or_path": str(make_model(name, work / "models" / name)),
        "prompt_data": str(make_prompts(name, work / "prompts" / f"{name}-{prompt_len}.jsonl", length=prompt_len)),
        "reward": [f"{Path(__file__).resolve()}:fraction_even"], "label_key": "", "ignore_eos": True,
        "prompt_max_len": prompt_len, "generate_max_len": new_tokens,
    }  # fmt: skip


def enders(name: str, *, cut: float, new_tokens: int) -> list[int]:
    """So many ids end a completion that, drawn evenly from the vocabulary, the fraction `cut` of all reaches `new_tokens`."""
    each = 1 - cut ** (1 / new_tokens)
    return list(range(4, 4 + round(each * SHAPES[name][1]["vocab_size"])))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(make_model(given.name, given.folder))
