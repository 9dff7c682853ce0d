"""Where the metrics go: the contract of a logger, and the two that core brings."""

from lightrft.run.loggers.base import Logger, LoggerSetup

__all__ = ["Logger", "LoggerSetup"]
