"""A rank that raises, in any phase, ends the whole run in time, with its own traceback first. Two real ranks, the real loop."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightrft.testing.tiny import tiny_model_folder

LIMIT_S = 30
"""The promise: all ranks end within 30 s of the failure."""

PHASES = {
    "preparing": ("lightrft.trainer.run", "open_run_folder", 0),
    "generating": ("lightrft.engine.hf.HFEngine", "generate", 1),
    "reward": ("lightrft.experience.pipeline.ExperienceMaker", "reward", 1),
    "backward": ("lightrft_fsdp.strategy.FSDPV2Strategy", "_backward", 1),
    "sync": ("lightrft.engine.hf.HFEngine", "update_weights", 1),
    "export": ("lightrft_fsdp.strategy.FSDPV2Strategy", "_export_weights", 1),
    "saving": ("lightrft.strategy.hf_export", "_write_shards", 0),
}
"""Where the planted error is raised: module or class, its function, and the rank."""
DAILY = ("reward", "backward", "sync", "saving")
"""One for each way in which ranks hear of it: in the loop, in a collective, from the engine, from the rank that writes."""

SCRIPT = """
import os, pkgutil, sys, time
from pathlib import Path
from lightrft.config.load import make_config, read_recipe
from lightrft.distributed.failure import reporting_failures

where, name, rank, recipe, stamp = sys.argv[1:]


def planted(*args, **kwargs):
    Path(stamp).write_text(str(time.time()))
    raise ZeroDivisionError(f"planted in {name}")


with reporting_failures():
    from lightrft.trainer.run import train

    if os.environ["RANK"] == rank:
        setattr(pkgutil.resolve_name(where), name, planted)
    train(make_config(read_recipe(recipe)))
"""

LAUNCH = """
import sys
from lightrft.distributed.launch import launch
sys.exit(launch([sys.executable, *sys.argv[1:]], nproc_per_node=2).exit_code)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tiny_model_folder(folder / "model")
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(8)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "fsdp": True, "compile": "no", "engine_type": "hf", "loggers": ["jsonl"], "plot_every": 0, "max_steps": 2,
        "model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "data.jsonl"),
        "output_dir": str(folder / "run"), "overwrite_output_dir": True,
        "prompt_max_len": 16, "generate_max_len": 4, "rollout_batch_size": 4, "n_samples_per_prompt": 2,
        "train_batch_size": 8, "micro_train_batch_size": 2,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def test_a_rank_that_hangs_in_generate_ends_the_run_and_says_where(recipe: Path, tmp_path: Path) -> None:
    script, stamp, limited = tmp_path / "script.py", tmp_path / "stamp", tmp_path / "recipe.yaml"
    script.write_text(SCRIPT.replace('raise ZeroDivisionError(f"planted in {name}")', "time.sleep(1000)"))
    limited.write_text(json.dumps(json.loads(recipe.read_text()) | {"generate_timeout_s": 10, "verify_sync_every": 0}))
    command = [sys.executable, "-c", LAUNCH, str(script), "lightrft.engine.hf.HFEngine", "generate", "1", str(limited), str(stamp)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 1, done.stdout + done.stderr
    assert time.time() - float(stamp.read_text()) < LIMIT_S
    told = [line for line in done.stderr.splitlines() if line.startswith("rank ")]
    assert told[:1] == ["rank 1 failed in generate:"], done.stderr
    assert "time.sleep(1000)" in done.stderr, "the stack of the thread that hangs"
    assert done.stderr.rstrip().splitlines()[-1] == (
        "EngineError: engine 'hf' on rank 1 did not return from generate within 10 s (generate_timeout_s), "
        "2 prompts outstanding (requests 2 to 3); raise it if they need longer, 0 = no limit (docs: troubleshooting#the-engine-fails)"
    )


@pytest.mark.parametrize("phase", [phase if phase in DAILY else pytest.param(phase, marks=pytest.mark.long) for phase in PHASES])
def test_a_rank_that_raises_ends_the_run_and_is_named_first(phase: str, recipe: Path, tmp_path: Path) -> None:
    script, stamp = tmp_path / "script.py", tmp_path / "stamp"
    script.write_text(SCRIPT)
    where, name, rank = PHASES[phase]
    command = [sys.executable, "-c", LAUNCH, str(script), where, name, str(rank), str(recipe), str(stamp)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    ended = time.time() - float(stamp.read_text())
    assert done.returncode == 1, done.stdout + done.stderr
    assert ended < LIMIT_S
    told = [line for line in done.stderr.splitlines() if line.startswith("rank ")]
    assert told and told[0].startswith(f"rank {rank} failed in "), done.stderr
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert done.stderr.rstrip().endswith(f"ZeroDivisionError: planted in {name} (docs: troubleshooting#a-rank-fails)")
