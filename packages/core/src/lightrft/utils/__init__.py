"""What a training script needs beside the strategy: the flags."""

from lightrft.config.arguments import add_arguments

__all__ = ["add_arguments"]
