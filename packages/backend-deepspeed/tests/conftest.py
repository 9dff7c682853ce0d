"""What the ranks of these tests have in common."""

from __future__ import annotations

import torch

from lightrft.testing import preload

if not torch.cuda.is_available():  # DeepSpeed asks the card when it is imported, and a process that has done so cannot be forked
    preload("deepspeed.runtime.zero.stage3", "deepspeed.runtime.superoffload.superoffload_stage3", "torch._inductor.compile_fx")
