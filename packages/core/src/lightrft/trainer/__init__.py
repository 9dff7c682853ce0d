"""The SPMD loop: rollout, reward, advantage, update, sync; evaluation, saving and resuming. Torch comes on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightrft.trainer.spmd_ppo import SPMDPPOTrainer

__all__ = ["SPMDPPOTrainer"]


def __getattr__(name: str) -> Any:
    if name != "SPMDPPOTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightrft.trainer.spmd_ppo import SPMDPPOTrainer

    return SPMDPPOTrainer
