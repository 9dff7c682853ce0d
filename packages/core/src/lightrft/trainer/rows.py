"""Models get the attention that packed and shared rows need, and show in a few passes that they do not mix sequences."""

from __future__ import annotations

from typing import Any

import torch

from lightrft.batch.images import BlankPrompt
from lightrft.config.row_checks import packing_problem
from lightrft.config.schema import Config
from lightrft.errors import ModelError
from lightrft.models.attention import has_our_attention, use_our_attention
from lightrft.models.image_positions import image_positions
from lightrft.models.packing_check import check_packing
from lightrft.models.text_rows import PackedTexts, PaddedTexts, scoring_layer
from lightrft.strategy.strategy_base import StrategyBase


def ready_for_rows(model: torch.nn.Module, *, config: Config, strategy: StrategyBase) -> None:
    """Makes `model`, as the strategy prepared it, ready for the rows that the settings ask for; once. Collective.

    A soft cap of the attention asks for ours with padded rows, too: transformers' sdpa drops it.

    Raises:
        ModelError: it cannot have such rows; names the setting.
    """
    inner, setting = strategy.unwrap(model), _setting(config)
    if not (setting or _has_soft_cap(inner)) or has_our_attention(inner):
        return
    use_our_attention(inner, setting=setting or "attn_logit_softcapping")
    if setting:
        device = strategy.world.device
        check_packing(
            lambda **inputs: _hidden(model, inner, inputs), inner.config, device=device, setting=setting, axis=strategy.mesh.sequence
        )


def check_image_rows(model: torch.nn.Module, *, config: Config, strategy: StrategyBase, blank: BlankPrompt) -> None:
    """Whether `model`, which is ready for rows, keeps packed rows apart where prompts have images, too. Collective where rows are packed.

    Raises:
        ModelError: it does not; names the setting.
    """
    inner, setting = strategy.unwrap(model), _setting(config)
    if setting:
        check_packing(
            lambda **inputs: _hidden(model, inner, inputs),
            inner.config,
            device=strategy.world.device,
            setting=setting,
            axis=strategy.mesh.sequence,
            blank=blank,
            positions=image_positions(inner),
        )


def beyond_budget(config: Config) -> str:
    """What a packed row's budget cannot hold, in words; empty where it holds the longest sequence."""
    longest, budget = config.prompt_max_len + config.generate_max_len, config.max_tokens_per_micro_batch
    if not config.packing_samples or longest <= budget:
        return ""
    return (
        f"max_tokens_per_micro_batch={budget} is below prompt_max_len + generate_max_len = {longest}: a sequence of more than {budget} "
        "tokens is a row by itself, and takes the memory of its own length"
    )


def text_rows(model: Any, *, name: str, config: Config, strategy: StrategyBase) -> PaddedTexts | PackedTexts:
    """The rows of reward model `name`: packed with `packing_samples` where it can be, which is said where it cannot. Collective.

    Its `pad_token_id` is set. A soft cap of its attention asks for ours with padded rows, too.
    """
    inner = strategy.unwrap(model)
    if config.packing_samples:
        try:
            return _packed_texts(model, inner, config=config, strategy=strategy)
        except ModelError as error:
            strategy.print(f"note: reward model {name!r} reads padded rows: {error}")
    if _has_soft_cap(inner) and not has_our_attention(inner):
        use_our_attention(inner, setting="attn_logit_softcapping")
    pad: int = inner.config.pad_token_id
    return PaddedTexts(model=model, pad=pad, micro_batch_size=config.micro_rollout_batch_size, device=strategy.world.device)


def _packed_texts(model: Any, inner: Any, *, config: Config, strategy: StrategyBase) -> PackedTexts:
    """Raises ModelError where the model cannot have such rows, and leaves it as it was."""
    setting, device, text = f"packing_samples={config.packing_samples!r}", strategy.world.device, inner.config.get_text_config()
    if problem := packing_problem(text.to_dict()):
        raise ModelError(f"it is {problem}, whose sequences cannot stand in one row")
    layer, pad, budget = scoring_layer(inner, setting=setting), inner.config.pad_token_id, config.max_tokens_per_micro_batch
    rows = PackedTexts(model=model, layer=layer, pad=pad, token_budget=budget, device=device)
    before = text._attn_implementation
    use_our_attention(inner, setting=setting)
    try:
        check_packing(lambda **inputs: _hidden(model, inner, inputs), inner.config, device=device, setting=setting)
        rows.check()
    except ModelError:
        inner.set_attn_implementation(before)
        raise
    return rows


def _setting(config: Config) -> str:
    """What asks for packed rows; empty where rows are padded."""
    if config.packing_samples:
        return f"packing_samples={config.packing_samples!r}"
    return f"sp_size={config.sp_size}" if config.sp_size > 1 else ""


def _has_soft_cap(model: Any) -> bool:
    config: Any = getattr(model, "config", None)
    return config is not None and bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))


def _hidden(model: Any, inner: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The last hidden states [1, s, H]: of critics, too, whose values start at 0; `inner` is the model without its backend.

    Caught on their way, since `output_hidden_states` would leave hooks in all blocks, at which torch's compiler breaks them off.
    """
    caught: list[Any] = []
    hook = inner.base_model.register_forward_hook(lambda *call: caught.append(call[-1]))
    try:
        model(**inputs)
    finally:
        hook.remove()
    states: torch.Tensor = caught[-1][0]  # of a base model's outputs the first, whatever class they are of
    return states
