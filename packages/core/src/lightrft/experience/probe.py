"""Does the engine hold the actor? It completes fixed prompts, and the actor scores them: after the first sync, and now and then."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightrft.data.prompts import Prompt
from lightrft.errors import WeightSyncError
from lightrft.experience.gap import logprob_gap
from lightrft.experience.scoring import score_logprobs
from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import Sample

NEW_TOKENS = 4
NUM_TRAINING_PROMPTS = 2
LONG_PROMPT = 192
"""Tokens of the prompt that fills more than a block of any engine's prefix cache (vLLM's has 128 on the CPU)."""

BOUNDS = {
    ("cpu", False): (1e-4, 1e-3),
    ("cuda", False): (5e-3, 5e-2),
    ("cpu", True): (5e-2, 1.0),
    ("cuda", True): (5e-2, 1.0),
}
"""(device, bf16): mean and largest |engine - actor| in nats per token. Measured with the right weights: 1e-6 in float32 on a CPU, 8e-4 and
3e-3 on an H100 (TF32), 9e-3 and 5e-2 in bfloat16; with wrong ones, 0.1 and more.
"""


class SyncProbe:
    """The same prompts every time, so that a prefix cache that outlived a sync shows too; alike on every engine. Collective."""

    def __init__(
        self, *, strategy: StrategyBase, prompts: Sequence[Prompt], prompt_max_len: int, vocab_size: int, micro_batch_size: int, bf16: bool
    ) -> None:
        self._strategy = strategy
        self._micro_batch_size = micro_batch_size
        self._bounds = BOUNDS[strategy.world.device.type, bf16]
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(0, vocab_size, (min(LONG_PROMPT, prompt_max_len),), generator=generator).tolist()
        self._prompts = [list(p.token_ids) for p in prompts[:NUM_TRAINING_PROMPTS]] + [drawn]

    def check(self, actor: torch.nn.Module) -> dict[str, float]:
        """The gap, as metrics.

        Raises:
            WeightSyncError: it is beyond the bound of the dtype, on all ranks together.
        """
        mine = self._prompts if self._strategy.leads_engine else []
        outputs = self._strategy.gather_and_generate(
            {"temperature": 0.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}, all_prompt_token_ids=mine, logprobs=True
        )
        rows = [
            Trajectory(prompt_ids=p, completion=o.completions[0], sample=Sample(prompt="", completion=""), group_id=o.id)
            for p, o in zip(mine, outputs, strict=True)
        ]
        scored = score_logprobs(actor, rows, strategy=self._strategy, micro_batch_size=self._micro_batch_size, temperature=1.0)
        gap = logprob_gap(rows, scored, strategy=self._strategy)
        mean, largest = gap["rollout/logprob_gap"], gap["rollout/logprob_gap_max"]
        if not (mean <= self._bounds[0] and largest <= self._bounds[1]):
            raise WeightSyncError(
                f"the engine does not hold the actor at weight version {self._strategy.weight_version}: log-probs of fixed prompts differ "
                f"by {mean:.3g} nats per token, {largest:.3g} at most; allowed are {self._bounds[0]:g} and {self._bounds[1]:g}. "
                "--verify_sync_every 0 switches this check off"
            )
        return {"sync/probe_gap": mean, "sync/probe_gap_max": largest}
