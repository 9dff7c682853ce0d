"""Which of transformers' automatic classes gives a configuration's language model; trainer, reference engine and names agree on it."""

from __future__ import annotations

import re
import sys
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText


def language_model_class(config: Any) -> Any:
    """`AutoModelForCausalLM`; for an image-text family that has no class there (Qwen2.5-VL, Mistral 3), `AutoModelForImageTextToText`,
    whose models read text alone as well.
    """
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    causal, image_text = _classes(AutoModelForCausalLM), _classes(AutoModelForImageTextToText)
    return (
        AutoModelForImageTextToText if not own_code and type(config) not in causal and type(config) in image_text else AutoModelForCausalLM
    )


def reads_images(config: Any) -> bool:
    """Whether the model that is loaded for this configuration takes images beside text: not where `AutoModelForCausalLM` has another class
    for it, which is the text part alone (Llama 4, Mllama, Qwen3.5).
    """
    kind, causal, image_text = type(config), _classes(AutoModelForCausalLM), _classes(AutoModelForImageTextToText)
    return kind in image_text and (kind not in causal or causal[kind] is image_text[kind])


def tells_images_by_runs(config: Any) -> bool:
    """Whether transformers' model gives tokens of images their positions run by run (M-RoPE): two runs without a token between are one."""
    mapping = _classes(AutoModelForImageTextToText)
    if type(config) not in mapping:
        return False
    return any(hasattr(one, "get_rope_index") for one in vars(sys.modules[mapping[type(config)].__module__]).values())


def ignored_on_load(name: str, model: Any) -> bool:
    """Whether loading such a tensor is known to change nothing: rotary tables, masks, heads of other tasks that the class names.

    False for a tensor of the model itself, whatever a pattern says: GPT-2's `attn.bias`, its old mask, is found in `c_attn.bias` as well.
    """
    patterns = [*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), r"rotary_emb\.inv_freq$", r"attn\.(masked_)?bias$"]
    if not any(re.search(pattern, name) for pattern in patterns):
        return False
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    own = {name, prefix + name, name.removeprefix(prefix)}
    return model is None or own.isdisjoint(model.state_dict().keys())


def keep_soft_cap(model: Any) -> Any:
    """The model; with a soft cap on its attention (Gemma 2) by transformers' eager function: its sdpa drops the cap, and says nothing."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


def _classes(automatic: Any) -> Any:
    """What `type(config) in ...` asks, as transformers itself does: by name. Its `keys()` import every family there is, seconds a rank."""
    return automatic._model_mapping
