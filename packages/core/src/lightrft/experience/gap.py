"""How far engine and trainer differ on what was sampled: the gap of their log-probs, its limit, and weights that correct it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch

from lightrft.algorithms.mismatch import Beyond, MismatchLevel, correction_weights, log_weights, mismatch_metrics, mismatch_sums
from lightrft.batch.stages import Sampled
from lightrft.errors import MismatchError
from lightrft.observe.metrics import StepMetrics
from lightrft.observe.warnings_log import Warnings

GAP_SUMS = ("tokens", "abs", "k3", "weight", "weight_squared", "clipped")


def add_gap(
    metrics: StepMetrics, batch: Sampled, trainer: torch.Tensor, *, cap: float = 2.0, level: MismatchLevel = "token", copies: int = 1
) -> None:
    """Adds how engine and trainer differ over the tokens whose engine log-probs are known: `mismatch_metrics` and the largest difference.

    `trainer` float32 [S]: its log-probs under the untempered distribution, as the engine's. Nothing where no rank has any. Local.
    """
    found = differences(batch, trainer)
    none = torch.zeros(0, dtype=torch.float64)
    mine = torch.cat([none, *found])
    weights = torch.cat([none, *(log_weights(d, level=level) for d in found)])
    counted = mismatch_sums(mine, cap=cap, log_weight=weights).tolist()
    largest = float(mine.abs().max()) if len(mine) else 0.0

    def finish(total: Mapping[str, float]) -> dict[str, float]:
        if not total["tokens"]:
            return {}
        return mismatch_metrics(torch.tensor([total[name] for name in GAP_SUMS], dtype=torch.float64)) | {
            "rollout/logprob_gap_max": total["largest"]
        }

    metrics.add("gap", dict(zip(GAP_SUMS, counted, strict=True)), finish, largest={"largest": largest}, copies=copies)


def add_lag_weights(
    metrics: StepMetrics, batch: Sampled, trainer: torch.Tensor, *, cap: float, level: MismatchLevel = "token", copies: int = 1
) -> None:
    """Adds how far the weights that sampled are from those that learn, over the tokens of all versions: the effective sample size of their
    ratios, and the fraction of those beyond `cap`. Arguments as for `add_gap`. Local.
    """
    found = differences(batch, trainer)
    none = torch.zeros(0, dtype=torch.float64)
    counted = mismatch_sums(torch.cat([none, *found]), cap=cap, log_weight=torch.cat([none, *(log_weights(d, level=level) for d in found)]))

    def finish(total: Mapping[str, float]) -> dict[str, float]:
        if not total["tokens"]:
            return {}
        named = mismatch_metrics(torch.tensor([total[name] for name in GAP_SUMS], dtype=torch.float64))
        return {"partial/ess": named["rollout/mismatch_ess"], "partial/clipped": named["rollout/mismatch_clipped"]}

    metrics.add("lag_weights", dict(zip(GAP_SUMS, counted.tolist(), strict=True)), finish, copies=copies)


def differences(batch: Sampled, trainer: torch.Tensor) -> list[torch.Tensor]:
    """log pi_trainer - log pi_engine, float64 [T] for each sequence whose engine log-probs are known."""
    found = batch.by_sequence(trainer.double() - batch.engine_logprobs.double())
    return [one for one, known in zip(found, batch.has_logprobs.tolist(), strict=True) if known]


def act_on_gap(
    gap: float, *, threshold: float, rounding: float = 0.0, action: Literal["warn", "correct", "stop"], warnings: Warnings
) -> None:
    """Says or raises, the same on all ranks, when the gap is beyond the threshold (or not a number). `threshold` 0 stands for `rounding`,
    what the dtype explains.

    Raises:
        MismatchError: with `action` "stop"; with "correct" where the gap is not finite, for then no weight makes up for it.
    """
    limit = threshold or rounding
    if gap <= limit:
        return
    why = "logprob_gap_threshold" if threshold else "what rounding explains in its dtype; logprob_gap_threshold sets another"
    message = (
        f"engine and trainer disagree: mean log-prob gap {gap:.4g} nats per token, threshold {limit:.4g} ({why}); "
        "look for stale engine weights, another dtype, or another tokenizer or chat template in the engine"
    )
    if action == "stop" or (action == "correct" and not math.isfinite(gap)):
        raise MismatchError(message)
    corrected = "; the update is corrected by truncated importance sampling" if action == "correct" else ""
    warnings.say("logprob_gap", message + corrected)


def corrections(
    batch: Sampled, trainer: torch.Tensor, *, level: MismatchLevel, cap: float, beyond: Beyond = "truncate", floor: float = 0.0
) -> torch.Tensor:
    """The weight of each sampled token's policy loss, float32 [S]. Local.

    Raises:
        MismatchError: a sequence has no engine log-probs, which are never made up.
    """
    if not bool(batch.has_logprobs.all()):
        raise MismatchError(
            "a correction (logprob_gap_action='correct', or max_version_lag) needs the engine's log-probs of every completion, found one "
            "without; generate with logprobs=True, or leave the correction out"
        )
    found = [correction_weights(d, level=level, cap=cap, beyond=beyond, floor=floor) for d in differences(batch, trainer)]
    return batch.on_tokens(torch.cat([torch.zeros(0), *found]))
