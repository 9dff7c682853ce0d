"""How many examples each target tries: `--examples N`."""

from __future__ import annotations

import contextlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--examples", type=int, default=200, help="that each fuzz target tries")


def pytest_configure(config: pytest.Config) -> None:
    with contextlib.suppress(ImportError):
        from hypothesis import HealthCheck, settings

        checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
        settings.register_profile("here", max_examples=config.getoption("--examples"), deadline=10_000, suppress_health_check=checks)
        settings.load_profile("here")
