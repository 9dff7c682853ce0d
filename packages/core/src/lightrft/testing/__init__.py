"""What tests of LightRFT and of its plugins run on: ranks (`spmd`), tiny models (`tiny`), fakes (`fake_strategy`, `fake_engine`).

Nothing in the library imports this package.
"""

from lightrft.testing.spmd import SpmdError, preload, run_spmd

__all__ = ["SpmdError", "preload", "run_spmd"]
