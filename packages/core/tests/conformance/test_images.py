"""The fake engine, as one that reads images, passes the kit; `hf` is asked with all of its kit (test_core.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_images import Images
from lightrft.testing.fake_engine import FakeJudge
from lightrft.testing.fake_strategy import FAKE_ENGINE, fake_registry

pytest.importorskip("PIL", reason="images are Pillow's")


def registry() -> Registry:
    return fake_registry(replace(FAKE_ENGINE, name="pictured-fake", capabilities=FAKE_ENGINE.capabilities | {Capability.MULTIMODAL}))


class TestFakeThatReadsImages(Images):
    engine_name = "pictured-fake"
    registry = registry
    judge = FakeJudge()
