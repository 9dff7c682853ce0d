"""The built wheels work, installed into an environment that has none of our sources."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import thin_env

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = "lightrft/plugin_template/"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def core_only(environment, wheels) -> Path:
    return environment(wheels["lightrft"])


@pytest.fixture(scope="module")
def core_and_fsdp(environment, wheels) -> Path:
    return environment(wheels["lightrft"], wheels["lightrft-backend-fsdp"])


@pytest.fixture(scope="module")
def core_and_deepspeed(environment, wheels) -> Path:
    return environment(wheels["lightrft"], wheels["lightrft-backend-deepspeed"])


@pytest.fixture
def run(tmp_path) -> Run:
    def do(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    return do


def plugins(run: Run, python: Path) -> dict[tuple[str, str], dict[str, object]]:
    done = run(python.parent / "lightrft", "plugins", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["plugins"]
    return {(row["kind"], row["name"]): row for row in rows}


def test_what_a_wheel_holds(wheels):
    packages = {
        "lightrft": "lightrft",
        "lightrft-backend-fsdp": "lightrft_fsdp",
        "lightrft-backend-deepspeed": "lightrft_deepspeed",
        "lightrft-acme": "lightrft_acme",
        "lightrft-ddp": "lightrft_ddp",
        "lightrft-continuous-batching": "lightrft_continuous",
    }
    assert packages.keys() == wheels.keys()
    for name, package in packages.items():
        files = [file for file in zipfile.ZipFile(wheels[name]).namelist() if not file.startswith(TEMPLATE)]
        assert f"{package}/py.typed" in files
        assert any(file.endswith(".dist-info/entry_points.txt") for file in files)
        assert any(file.endswith("/LICENSE") for file in files)
        assert not [
            file for file in files if "test_" in file or not file.startswith((f"{package}/", f"{package.replace('-', '_')}", "lightrft"))
        ]
    assert "lightrft/demo/sort.yaml" in zipfile.ZipFile(wheels["lightrft"]).namelist()


def test_cores_wheel_holds_the_plugin_template_and_nothing_else_of_its_folder(wheels):
    folder = ROOT / "examples/plugin-template"
    tracked = subprocess.run(["git", "ls-files", "."], cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    with zipfile.ZipFile(wheels["lightrft"]) as wheel:
        held = {file.removeprefix(TEMPLATE): wheel.read(file) for file in wheel.namelist() if file.startswith(TEMPLATE)}
    assert tracked
    assert {file: held.get(file) for file in tracked} == {file: (folder / file).read_bytes() for file in tracked}


def test_the_environment_holds_the_wheel_and_not_the_sources(run, core_only):
    done = run(core_only, "-c", "import lightrft, importlib.util as u; print(lightrft.__file__); print(u.find_spec('lightrft_fsdp'))")
    file, plugin = done.stdout.splitlines()
    assert Path(file).is_relative_to(core_only.parent.parent)
    assert plugin == "None"


def test_the_plugin_is_found(run, core_and_fsdp):
    row = plugins(run, core_and_fsdp)["strategy", "fsdp"]
    assert {key: row[key] for key in ("distribution", "version", "api", "state", "reason")} == {
        "distribution": "lightrft-backend-fsdp",
        "version": "0.2.0",
        "api": 1,
        "state": "ok",
        "reason": "",
    }
    assert "multi_rank" in row["capabilities"]


def test_the_listing_as_a_table_names_it_too(run, core_and_fsdp):
    done = run(core_and_fsdp.parent / "lightrft", "plugins")
    assert done.returncode == 0
    assert "fsdp" in done.stdout
    assert "single" in done.stdout


def test_without_the_plugin_it_is_not_listed(run, core_only):
    found = plugins(run, core_only)
    assert ("strategy", "fsdp") not in found
    assert {row["distribution"] for row in found.values()} == {"lightrft"}


SELECT = """
import argparse
from lightrft.strategy import get_strategy
from lightrft.utils import add_arguments
from lightrft.errors import UserError
args = add_arguments(argparse.ArgumentParser()).parse_args({flags!r})
try:
    strategy = get_strategy(args)
except UserError as error:
    print(error)
else:
    print(type(strategy).__module__, type(strategy).__name__)
    strategy.shutdown()
"""


@pytest.mark.parametrize(("flags", "name"), [(["--fsdp"], "fsdp"), ([], "deepspeed")])
def test_without_the_plugin_the_message_says_what_to_install(run, core_only, flags, name):
    done = run(core_only, "-c", SELECT.format(flags=flags))
    assert done.stdout == f"strategy {name!r} is not installed: pip install 'lightrft[{name}]' (installed: single)\n", done.stderr


def test_on_the_command_line_likewise_with_code_2_and_no_traceback(run, core_only):
    done = run(core_only.parent / "lightrft", "train", "--fsdp")
    assert done.returncode == 2
    assert "pip install 'lightrft[fsdp]'" in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stdout + done.stderr


def test_with_the_plugin_the_flag_gives_its_strategy(run, core_and_fsdp):
    done = run(core_and_fsdp, "-c", SELECT.format(flags=["--fsdp"]))
    assert done.stdout.split()[-1] == "FSDPV2Strategy", done.stderr
    assert done.stdout.startswith("lightrft_fsdp.")


def test_without_the_flag_it_is_deepspeed(run, core_and_deepspeed):
    row = plugins(run, core_and_deepspeed)["strategy", "deepspeed"]
    assert (row["distribution"], row["state"], row["reason"]) == ("lightrft-backend-deepspeed", "ok", "")
    assert "zero_stages" in row["capabilities"]
    done = run(core_and_deepspeed, "-c", SELECT.format(flags=["--zero_stage", "3"]))
    assert done.stdout == "lightrft_deepspeed.strategy DeepspeedStrategy\n", done.stderr


def test_without_any_plugin_the_reference_strategy_runs(run, core_only):
    done = run(core_only, "-c", SELECT.format(flags=["--strategy", "single"]))
    assert done.stdout == "lightrft.strategy.single SingleStrategy\n", done.stderr


THREE_STEPS = ["--max_steps", "3", "--sft_steps", "2", "--scratch_layers", "1", "--scratch_hidden", "64", "--scratch_heads", "2"]
THREE_STEPS += ["--scratch_kv_heads", "2", "--rollout_batch_size", "4", "--n_samples_per_prompt", "4", "--train_batch_size", "16"]
THREE_STEPS += ["--micro_train_batch_size", "4", "--max_eval_samples", "4", "--eval_every", "0"]


def demo(run: Run, python: Path, *words: str) -> str:
    done = run(python.parent / "lightrft", "demo", *THREE_STEPS, *words, "--json")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 3
    return done.stdout


def test_the_demo_of_core_alone_needs_no_extra(run, tmp_path, wheels):
    """No matplotlib, no DeepSpeed, no math-verify: the default draws no plots, and says so once."""
    extras = ("matplotlib", "math_verify", "deepspeed", "datasets", "peft", "wandb", "tensorboard", "accelerate")
    python = thin_env.make(tmp_path / "venv", without=extras)
    thin_env.install(python, wheels["lightrft"])
    shown = demo(run, python, "--strategy", "single")
    assert shown.count("no plots are drawn, for matplotlib is not installed: pip install 'lightrft[plot]'") == 1
    assert "reward curve" not in shown
    refused = run(python.parent / "lightrft", "demo", "--strategy", "single", "--nproc-per-node", "1", "--plot_every", "5")
    assert refused.returncode == 2
    assert "plot_every=5 needs matplotlib: pip install 'lightrft[plot]'; or set --plot_every 0" in refused.stderr + refused.stdout


@pytest.mark.long
def test_an_fsdp_run_says_nothing_of_deepspeed(run, core_and_fsdp):
    assert "deepspeed" not in demo(run, core_and_fsdp, "--strategy", "fsdp", "--nproc-per-node", "1").lower()
