"""Training backends: `get_strategy`, the base class, the reference strategy `single`."""

from lightrft.strategy.factory import get_strategy

__all__ = ["get_strategy"]
