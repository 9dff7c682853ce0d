"""What CPGD's loss is told beside the bounds of its clip. No torch."""

from __future__ import annotations

from pydantic import Field

from lightrft.plugins.settings import PluginSettings


class CPGDSettings(PluginSettings):
    """Settings `cpgd.NAME`."""

    drift_coef: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight of the penalty for leaving the old policy; 0 = none")
