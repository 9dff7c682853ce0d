"""SGLang looks for operators of `sgl_kernel` at import: the stand-in is there first. Nothing heavy here."""

from __future__ import annotations

import importlib

from lightrft_cpu_shim.hook import BEFORE


def import_stand_in() -> None:
    importlib.import_module("sgl_kernel")


BEFORE["sglang"] = import_stand_in
