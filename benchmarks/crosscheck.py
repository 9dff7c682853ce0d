"""Our losses against TRL's, in value and gradient. Runs where trl 1.16 is installed (`make crosscheck`), and prints a table.

TRL's losses are methods of its trainers, which read a model's log-probs: they are called on a stand-in that has the settings and gives
log-probs of our choice. Everything in float64. Advantages are not compared: TRL computes them inside the method that generates. Its GRPO
divides by the standard deviation plus 1e-4, ours by it plus 1e-6; its RLOO loss has one ratio for a completion, the product of its tokens'.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import trl
from trl.experimental.gmpo import GMPOTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from lightrft.algorithms.aggregate import Aggregation, token_weights
from lightrft.algorithms.cispo import cispo
from lightrft.algorithms.gmpo import gmpo
from lightrft.algorithms.gspo import gspo
from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput
from lightrft.algorithms.kl import kl_per_token
from lightrft.algorithms.ppo_clip import ppo_clip
from lightrft.batch.micro_batch import padded
from lightrft.batch.stages import Sampled
from lightrft.models.score import score_tokens
from lightrft.testing.batches import batch_of
from lightrft.testing.tiny import tiny_causal_lm

Loss = Callable[[PolicyLossInput], PolicyLoss]
BOUND = 1e-6
N, T, MAX_LEN = 6, 9, 12
EXPECTED = "1.16"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    if not trl.__version__.startswith(EXPECTED):
        sys.exit(f"trl {trl.__version__} is installed; these names and settings are those of trl {EXPECTED}")
    rows = [*losses(), log_probs_and_entropy()]
    print(f"trl {trl.__version__}, differences from it (bound {BOUND:.0e})")
    for row in rows:
        print(f"{row['name']:>40}  value {row['value']:.1e}  gradient {row['gradient']:.1e}  {'agree' if row['good'] else 'DIFFER'}")
    if args.json:
        print(json.dumps({"benchmark": "crosscheck", "trl": trl.__version__, "rows": rows}))
    return 0 if all(row["good"] for row in rows) else 1


def losses() -> list[dict[str, Any]]:
    """One row for each loss that both have."""
    high, low = math.expm1(0.4), -math.expm1(-0.4)  # GMPO's bounds are of logs there, of ratios here
    return [
        compare("ppo_clip, sequence_mean", ppo_clip, "sequence_mean", loss_type="grpo"),
        compare("ppo_clip, token_mean (DAPO)", ppo_clip, "token_mean", loss_type="dapo", epsilon_high=0.28, eps_clip_high=0.28),
        compare("ppo_clip, constant (Dr. GRPO)", ppo_clip, "constant", loss_type="dr_grpo"),
        compare("dual clip", ppo_clip, "token_mean", loss_type="bnpo", delta=1.5, dual_clip=1.5),
        compare("KL k3 in the loss", ppo_clip, "sequence_mean", loss_type="grpo", beta=0.3),
        compare("gspo", gspo, "sequence_mean", loss_type="grpo", importance_sampling_level="sequence"),
        compare("cispo", cispo, "token_mean", loss_type="cispo", epsilon_high=1.28, eps_clip_low=1.0, eps_clip_high=0.28),
        compare(
            "gmpo",
            gmpo,
            "sequence_mean",
            trainer=GMPOTrainer,
            epsilon_low=0.4,
            epsilon_high=0.4,
            eps_clip_low=low,
            eps_clip_high=high,
        ),
    ]


OURS = ("eps_clip_low", "eps_clip_high", "dual_clip")


def compare(name: str, loss: Loss, how: Aggregation, *, trainer: Any = trl.GRPOTrainer, **settings: Any) -> dict[str, Any]:
    """Value and gradient of one loss on random log-probs, here and there."""
    generator = torch.Generator().manual_seed(1)
    old = -torch.rand(N, T, generator=generator, dtype=torch.float64)
    logprobs = old + 0.6 * torch.randn(N, T, generator=generator, dtype=torch.float64)
    initial = old + 0.6 * torch.randn(N, T, generator=generator, dtype=torch.float64)
    advantages = torch.randn(N, generator=generator, dtype=torch.float64)
    mask = (torch.arange(T)[None] < torch.tensor([9, 4, 1, 7, 9, 2])[:, None]).double()
    batch = SimpleNamespace(logprobs=logprobs, old=old, initial=initial, advantages=advantages, mask=mask)
    mine, my_gradient = ours(batch, loss, how, beta=settings.get("beta", 0.0), **{key: settings[key] for key in OURS if key in settings})
    theirs, their_gradient = of_trl(batch, trainer, {key: value for key, value in settings.items() if key not in OURS})
    return verdict(name, abs(mine - theirs), float((my_gradient - their_gradient).abs().max()))


def ours(batch: Any, loss: Loss, how: Aggregation, *, beta: float, **settings: float) -> tuple[float, torch.Tensor]:
    logprobs = batch.logprobs.clone().requires_grad_()
    given: dict[str, Any] = settings
    advantages = batch.advantages[:, None] * batch.mask
    found = loss(PolicyLossInput(logprobs=logprobs, old_logprobs=batch.old, advantages=advantages, mask=batch.mask, **given))
    per_token = found.per_token + beta * kl_per_token(logprobs, batch.initial, estimator="k3")
    tokens = float(batch.mask.sum())
    total = (per_token * token_weights(batch.mask, how=how, num_tokens=tokens, num_sequences=float(N), constant=float(MAX_LEN))).sum()
    total.backward()
    return float(total.detach()), logprobs.grad


def of_trl(batch: Any, trainer: Any, settings: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """`_compute_loss` on a stand-in for the trainer."""
    logprobs = batch.logprobs.clone().requires_grad_()
    own = SimpleNamespace(delta=settings.pop("delta", None), use_bias_correction_kl=False, steps_per_generation=1)
    defaults = dict(
        loss_type="grpo", importance_sampling_level="token", epsilon_low=0.2, epsilon_high=0.2, beta=0.0, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, use_vllm=False, max_completion_length=MAX_LEN, aux_loss_enabled=False, _entropy_bonus_enabled=False,
    )  # fmt: skip
    stand_in = SimpleNamespace(
        **defaults | settings,
        args=own,
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x),
        _metrics={"eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
    )
    ids = torch.zeros(N, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": ids, "completion_mask": batch.mask,
        "advantages": batch.advantages, "old_per_token_logps": batch.old, "ref_per_token_logps": batch.initial,
        "num_items_in_batch": batch.mask.sum(),
    }  # fmt: skip
    loss = trainer._compute_loss(stand_in, None, inputs)
    loss.backward()
    return float(loss.detach()), logprobs.grad


def log_probs_and_entropy() -> dict[str, Any]:
    """Of a tiny model's completion; the gradient is that of their sum, in the model's last layer."""
    prompt, completion, temperature = [3, 4, 5], [6, 7, 1], 0.7
    model: Any = tiny_causal_lm(seed=4, vocab_size=32)
    batch = batch_of(Sampled, [(prompt, completion)])
    micro = padded(batch, torch.arange(1), device=torch.device("cpu"))
    scores = score_tokens(model, micro, temperatures=(temperature,), entropy=True)
    mine = torch.stack([scores.logprobs[0], scores.entropy])[:, None]
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[:, 2:-1] / temperature
    theirs = torch.stack([selective_log_softmax(logits, torch.tensor([completion])), entropy_from_logits(logits)])
    gradients = [torch.autograd.grad(found.sum(), model.lm_head.weight)[0] for found in (mine, theirs)]
    return verdict("log-probs and entropy", float((mine - theirs).detach().abs().max()), float((gradients[0] - gradients[1]).abs().max()))


def verdict(name: str, value: float, gradient: float) -> dict[str, Any]:
    return {"name": name, "value": value, "gradient": gradient, "good": value <= BOUND and gradient <= BOUND}


if __name__ == "__main__":
    sys.exit(main())
