"""A phase that runs out of memory says its name, its sizes, the plan's figure and what makes room."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.errors import LightRFTError
from lightrft.testing.small_trainer import make_trainer
from lightrft.testing.tiny import tiny_model_folder
from lightrft.trainer.out_of_memory import planned

TORCHS = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.00 GiB is free."


def full(*_: Any) -> Any:
    raise torch.OutOfMemoryError(TORCHS)


def test_a_phase_in_a_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, phases={"update": full}, eval_prompts=())
    with pytest.raises(LightRFTError, match=r"rank 0 ran out of memory in phase 'update': CUDA out of memory\. No plan") as caught:
        trainer.fit()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError) and "the settings name no model" in str(caught.value)


def test_the_figure_of_the_plan_and_what_makes_room(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "m")
    settings = {"strategy": "single", "engine_type": "hf", "model_name_or_path": str(folder), "micro_train_batch_size": 64}
    config = make_config(settings | {"prompt_max_len": 256, "generate_max_len": 256, "enable_engine_sleep": True})
    world: Any = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    found = planned("update", config=config, world=world)
    assert found.startswith("The plan has ") and " GiB for 'update' (" in found and "activations" in found
    assert "To make room: --" in found and "\n" not in found


def test_a_run_that_no_plan_knows_says_so(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "m")
    config = make_config({"strategy": "fake", "engine_type": "hf", "model_name_or_path": str(folder)})
    world: Any = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    assert planned("update", config=config, world=world).startswith("No plan of its memory can be made: strategy 'fake': a plan knows what")
