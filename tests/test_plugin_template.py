"""A package written outside of the repository brings every kind of plugin, tests itself, and trains by name beside core's wheel alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import thin_env
from lightrft import __version__ as lightrft_version
from lightrft.plugins import API_VERSION

TEMPLATE = Path(__file__).resolve().parents[1] / "examples/plugin-template"
KINDS = ("strategy", "engine", "reward", "advantage", "policy_loss", "logger")
BY_NAME = ["--strategy", "acme", "--engine_type", "acme", "--reward", "acme", "exact_match", "--reward_weights", "1", "0.5"]
BY_NAME += ["--advantage_estimator", "acme", "--policy_loss", "acme", "--loggers", "acme", "jsonl"]
SMALL = ["--max_steps", "2", "--sft_steps", "5", "--sft_target_reward", "0", "--scratch_layers", "1", "--scratch_hidden", "64"]
SMALL += ["--scratch_heads", "2", "--scratch_kv_heads", "2", "--rollout_batch_size", "4", "--n_samples_per_prompt", "4"]
SMALL += ["--train_batch_size", "16", "--micro_train_batch_size", "4", "--max_eval_samples", "4", "--eval_every", "0", "--plot_every", "0"]


@pytest.fixture(scope="module")
def python(environment, wheels) -> Path:
    """An environment with core's wheel and the template's, and no other plugin."""
    return environment(wheels["lightrft"], wheels["lightrft-acme"])


def run(command: Sequence[str | Path], *, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(list(command), cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def lightrft(python: Path, *words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return run([python.parent / "lightrft", *words], cwd=cwd, **variables)


def rows_of(python: Path, distribution: str, *, cwd: Path, **variables: str) -> set[tuple[str, str, str, str]]:
    done = lightrft(python, "plugins", "--json", cwd=cwd, **variables)
    rows = json.loads(done.stdout.splitlines()[-1])["plugins"]
    return {(row["kind"], row["name"], row["version"], row["state"]) for row in rows if row["distribution"] == distribution}


def on_path(folder: Path, name: str, version: str, entry_point: str) -> None:
    """Makes a folder that is on the path a distribution, as far as discovery reads one."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[lightrft.plugins]\n{entry_point}\n", encoding="utf-8")


def own_tests(python: Path, source: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the tests of a plugin where its sources are not: what is tested is what is installed."""
    shutil.copytree(source / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "pyproject.toml", folder)
    return run([python, "-m", "pytest", "-q", *words], cwd=folder)


# ---- how much there is to write ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "most"), [("src/lightrft_acme/strategy.py", 149), ("src/lightrft_acme/engine.py", 149), ("tests/test_conformance.py", 25)]
)
def test_a_plugin_is_short(file, most):
    assert len((TEMPLATE / file).read_text(encoding="utf-8").splitlines()) <= most


def test_it_is_written_for_the_present_api_and_requires_the_present_core():
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [required] = [Requirement(line) for line in project["dependencies"]]
    assert required.name == "lightrft" and required.specifier.contains(lightrft_version)
    assert f"\nAPI = {API_VERSION}\n" in (TEMPLATE / "src/lightrft_acme/plugin.py").read_text(encoding="utf-8")


# ---- beside core's wheel alone -----------------------------------------------------------------------------------------------------------


def test_its_plugins_are_listed(python, tmp_path):
    assert rows_of(python, "lightrft-acme", cwd=tmp_path) == {(kind, "acme", "0.1.0", "ok") for kind in KINDS}


@pytest.mark.parametrize("fault", ["raise RuntimeError('no licence')", "import no_such_module", "raise SystemExit(1)", "def ("])
def test_a_broken_neighbour_breaks_nothing_of_it(python, tmp_path, fault):
    on_path(tmp_path, "broken-rft", "0.3", "broken = broken_plugin")
    (tmp_path / "broken_plugin.py").write_text(fault, encoding="utf-8")
    beside = {"PYTHONPATH": str(tmp_path)}
    assert rows_of(python, "lightrft-acme", cwd=tmp_path, **beside) == {(kind, "acme", "0.1.0", "ok") for kind in KINDS}
    assert rows_of(python, "broken-rft", cwd=tmp_path, **beside) == {("?", "broken", "0.3", "broken")}


@pytest.mark.parametrize(
    ("number", "side"), [(0, "upgrade old-sled, or install an older lightrft"), (99, "upgrade lightrft, or install an older old-sled")]
)
def test_an_old_and_a_future_copy_of_it_are_listed_and_refused_with_the_side_to_upgrade(python, tmp_path, number, side):
    assert lightrft(python, "new-plugin", "old-sled", cwd=tmp_path).returncode == 0
    sources = tmp_path / "old-sled" / "src"
    module = sources / "old_sled" / "plugin.py"
    module.write_text(module.read_text(encoding="utf-8").replace("API = 1", f"API = {number}"), encoding="utf-8")
    on_path(sources, "old-sled", "2.0", "old-sled = old_sled.plugin")
    beside = {"PYTHONPATH": str(sources)}
    assert rows_of(python, "old-sled", cwd=tmp_path, **beside) == {(kind, "old-sled", "2.0", "other api") for kind in KINDS}
    assert rows_of(python, "lightrft-acme", cwd=tmp_path, **beside) == {(kind, "acme", "0.1.0", "ok") for kind in KINDS}
    done = lightrft(python, "demo", "--strategy", "old-sled", "--engine_type", "hf", cwd=tmp_path, **beside)
    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"error: strategy 'old-sled': old-sled 2.0 is written for plugin API {number}, lightrft ")
    assert f": {side}: pip install -U " in line


def test_what_it_does_not_declare_is_refused_before_anything_starts(python, tmp_path):
    done = lightrft(python, "demo", *BY_NAME, "--bf16", "--output_dir", str(tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 2
    text = " ".join(done.stderr.split())
    assert "bf16=True needs the capability 'bf16', which strategy 'acme' (lightrft-acme 0.1.0) does not declare" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_its_own_tests_pass(python, tmp_path):
    done = own_tests(python, TEMPLATE, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


@pytest.mark.slow
def test_the_demos_loop_runs_on_them_by_name(python, tmp_path):
    folder = tmp_path / "run"
    done = lightrft(python, "demo", *BY_NAME, *SMALL, "--nproc-per-node", "2", "--output_dir", str(folder), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["strategy"], result["engine"], result["world_size"], result["steps"]) == ("acme", "acme", 2, 2)

    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    gaps = [row["rollout/logprob_gap"] for row in steps if "rollout/logprob_gap" in row]
    assert len(gaps) == 2
    assert max(gaps) < 1e-3, "the engine samples from the weights that the trainer has, after each of its updates"
    assert "model_type" in json.loads((Path(result["model_dir"]) / "config.json").read_text(encoding="utf-8"))
    lines = (folder / "acme.log").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("step 2 ") and "rollout/logprob_gap=" in line]


# ---- a plugin of one's own ---------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_new_plugin_made_by_the_wheel_passes_its_own_tests_beside_the_template(python, tmp_path):
    done = lightrft(python, "new-plugin", "rocket-sled", "--dir", "mine", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    folder = tmp_path / made["folder"]
    assert folder == tmp_path / "mine" / "rocket-sled"
    assert sorted(made["files"]) == sorted(str(path.relative_to(tmp_path)) for path in folder.rglob("*") if path.is_file())
    thin_env.install(python, folder)
    try:
        assert rows_of(python, "rocket-sled", cwd=tmp_path) == {(kind, "rocket-sled", "0.1.0", "ok") for kind in KINDS}
        (tmp_path / "elsewhere").mkdir()
        tested = own_tests(python, folder, tmp_path / "elsewhere", "-k", "test_parts or TestEngine or an_update_is_that_of_one_process")
        assert tested.returncode == 0, tested.stdout[-6000:]
    finally:
        run([python, "-m", "pip", "uninstall", "--yes", "--quiet", "rocket-sled"], cwd=tmp_path)
