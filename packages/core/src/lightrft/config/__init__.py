"""The typed configuration, its flags and its checks. No torch."""

from lightrft.config.arguments import add_arguments
from lightrft.config.load import as_config, make_config, read_recipe
from lightrft.config.schema import Config

__all__ = ["Config", "add_arguments", "as_config", "make_config", "read_recipe"]
