"""Programs of a model: `passes` judges one by tests, `run_program` gives its output, `lacking` says what this system lacks."""

from lightrft.utils.sandbox.judge import lacking, passes
from lightrft.utils.sandbox.output import ProgramOutput, run_program

__all__ = ["ProgramOutput", "lacking", "passes", "run_program"]
