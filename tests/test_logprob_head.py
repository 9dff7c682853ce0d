"""The gradients of log-probs that the output layer gives are those of plain logits, under every strategy, on two ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers

from lightrft.config.load import make_config
from lightrft.models.heads import LabelRequest, score_labels
from lightrft.models.lora import add_lora
from lightrft.strategy.factory import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.architectures import SMALL, make_model
from lightrft.testing.parity import GRADIENT_STEP
from lightrft.testing.workload import Row, count, largest_difference, ragged_rows, split_rows

TEMPERATURE = 0.7
BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True},
    "fsdp, kept gathered": {"fsdp": True, "fsdp_reshard_after_forward": False},
    **{f"zero {stage}": {"strategy": "deepspeed", "zero_stage": stage} for stage in (0, 1, 2, 3)},
}
KINDS = ("qwen3", "llama", "llama tied", "gemma2", "granite", "adapter on the head")
LOGITS, PLAIN, FUSED = -1, 0, 16
"""The log-softmax of plain logits; the head's plain implementation; the fused one with so many tokens at a time."""


def test_first_gradients_are_those_of_plain_logits():
    _assert_near({name: BACKENDS[name] for name in ("fsdp", "zero 3")}, ("gemma2",))


@pytest.mark.long  # the one above asks daily
def test_first_gradients_of_every_backend_and_family():
    _assert_near(BACKENDS, KINDS)


def _assert_near(backends: dict[str, dict[str, Any]], kinds: tuple[str, ...]) -> None:
    oracle = run_spmd(measure, 1, {"single": {"strategy": "single"}}, kinds, (LOGITS,))[0]
    expected = {kind: gradients for (_, kind, _), gradients in oracle.items()}
    for rank in run_spmd(measure, 2, backends, kinds, (PLAIN, FUSED), timeout_s=600.0):
        for case, gradients in rank.items():
            assert largest_difference(gradients, expected[case[1]], relative=True) <= 1e-6, case


def measure(backends: dict[str, dict[str, Any]], kinds: tuple[str, ...], chunk_sizes: tuple[int, ...]) -> dict[Any, Any]:
    """The gradients of one step, full, by backend, kind of model and chunk size."""
    found = {}
    for name, settings in backends.items():
        strategy = get_strategy(make_config(dict(settings)))
        found |= {(name, kind, size): _gradients(strategy, kind, size) for kind in kinds for size in chunk_sizes}
        strategy.shutdown()
    return found


def _gradients(strategy: Any, kind: str, chunk_size: int) -> dict[str, torch.Tensor]:
    model = _model(kind)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    model, optimizer = strategy.prepare_trainable(model, optimizer=GRADIENT_STEP)
    rows = ragged_rows(0)
    mine = split_rows(rows, world_size=2, num_micro=3)[strategy.world.rank]
    micros = mine if strategy.world.world_size > 1 else [rows]
    loss = _logit_loss if chunk_size == LOGITS else partial(_column_loss, chunk_size or None)
    strategy.accumulate(micros, lambda micro: loss(model, micro) / count(rows), model, optimizer)
    strategy.optimizer_step(optimizer, model, None, "actor")
    moved = {w.names[0]: w.tensor.cpu() for bucket in strategy._export_weights(model, None, 2**30) for w in bucket}
    unit = GRADIENT_STEP.eps / GRADIENT_STEP.learning_rate
    return {name: (value - moved[name]) * unit for name, value in start.items()}


def _model(kind: str) -> Any:
    tf: Any = transformers
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "granite":
            return tf.GraniteForCausalLM(tf.GraniteConfig(**SMALL, logits_scaling=6.0)).eval()
        if kind == "gemma2":  # tied, and capped where it matters
            return tf.Gemma2ForCausalLM(tf.Gemma2Config(**SMALL, final_logit_softcapping=0.3)).eval()
        if kind == "adapter on the head":
            model = add_lora(make_model("llama"), rank=4, alpha=8.0, target_modules=["lm_head", "q_proj"], seed=1)
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    torch.nn.init.normal_(parameter, std=0.1)
            return model
        return make_model(kind)


def _padded(micro: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids [N, L], and where labels are predicted [M] in the flattened ids, and these."""
    width = max((len(row.token_ids) for row in micro), default=2)
    ids = torch.zeros(max(len(micro), 1), width, dtype=torch.long)
    places = [torch.zeros(0, dtype=torch.long)]
    for index, row in enumerate(micro):
        length = len(row.token_ids)
        ids[index, :length] = row.token_ids
        places.append(index * width + torch.arange(length - 1 - row.num_counted, length - 1))
    rows = torch.cat(places)
    return ids, rows, ids.flatten()[rows + 1] if len(rows) else rows


def _logit_loss(model: Any, micro: list[Row]) -> torch.Tensor:
    ids, rows, labels = _padded(micro)
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[rows].float()
    warm, plain = (logits / TEMPERATURE).log_softmax(-1), logits.log_softmax(-1)
    entropy = -(warm.exp() * warm).sum(-1)
    return _loss(warm.gather(1, labels[:, None])[:, 0], plain.gather(1, labels[:, None])[:, 0], entropy)


def _column_loss(chunk_size: int | None, model: Any, micro: list[Row]) -> torch.Tensor:
    ids, rows, labels = _padded(micro)
    request = LabelRequest(rows=rows, labels=labels, temperatures=(TEMPERATURE, 1.0), entropy=True, chunk_size=chunk_size)
    columns = score_labels(model, request, input_ids=ids)
    return _loss(*columns.all())


def _loss(warm: torch.Tensor, plain: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    return -(warm * 0.5 + plain * 0.25 + entropy * 0.01).sum()
