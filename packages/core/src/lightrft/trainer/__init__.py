"""The SPMD loop: rollout, reward, advantage, update, sync; evaluation, logging and what a run leaves behind."""

from lightrft.trainer.spmd_ppo import SPMDPPOTrainer

__all__ = ["SPMDPPOTrainer"]
