"""Can a package written outside of the repository bring every kind of plugin, and does the demo's loop run on them by name?"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ACME = Path(__file__).resolve().parent / "acme"
BY_NAME = ["--strategy", "acme", "--engine_type", "acme", "--reward", "acme", "exact_match", "--reward_weights", "1", "0.5"]
BY_NAME += ["--advantage_estimator", "acme", "--policy_loss", "acme", "--loggers", "acme", "jsonl"]
SMALL = ["--max_steps", "2", "--sft_steps", "5", "--sft_target_reward", "0", "--scratch_layers", "1", "--scratch_hidden", "64"]
SMALL += ["--scratch_heads", "2", "--scratch_kv_heads", "2", "--rollout_batch_size", "4", "--n_samples_per_prompt", "4"]
SMALL += ["--train_batch_size", "16", "--micro_train_batch_size", "4", "--max_eval_samples", "4", "--eval_every", "0", "--plot_every", "0"]


@pytest.fixture(scope="module")
def python(environment, wheels) -> Path:
    """An environment with core's wheel and the third party's package, built and installed by pip; no other plugin."""
    return environment(wheels["lightrft"], ACME)


def lightrft(python: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([python.parent / "lightrft", *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_its_plugins_are_listed(python, tmp_path):
    done = lightrft(python, "plugins", "--json", cwd=tmp_path)
    rows = [row for row in json.loads(done.stdout.splitlines()[-1])["plugins"] if row["distribution"] == "acme-rft"]
    assert {(row["kind"], row["name"], row["version"], row["state"]) for row in rows} == {
        (kind, "acme", "0.7.0", "ok") for kind in ("strategy", "engine", "reward", "advantage", "policy_loss", "logger")
    }


@pytest.mark.slow
def test_the_demos_loop_runs_on_them_by_name(python, tmp_path):
    run = tmp_path / "run"
    done = lightrft(python, "demo", *BY_NAME, *SMALL, "--nproc-per-node", "2", "--output_dir", str(run), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["strategy"], result["engine"], result["world_size"], result["steps"]) == ("acme", "acme", 2, 2)

    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    gaps = [row["rollout/logprob_gap"] for row in steps if "rollout/logprob_gap" in row]
    assert len(gaps) == 2
    assert max(gaps) < 1e-3, "the engine samples from the weights that the trainer has, after each of its updates"
    assert "model_type" in json.loads((Path(result["model_dir"]) / "config.json").read_text(encoding="utf-8"))
    lines = (run / "acme.log").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "closed"
    assert [line for line in lines if line.startswith("2 ") and "rollout/logprob_gap" in line]


def test_what_it_does_not_declare_is_refused_before_anything_starts(python, tmp_path):
    done = lightrft(python, "demo", *BY_NAME, "--packing_samples", "--output_dir", str(tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 2
    text = " ".join(done.stderr.split())
    assert "packing_samples=True needs the capability 'packing', which strategy 'acme' (acme-rft 0.7.0) does not declare" in text
    assert not (tmp_path / "run").exists()
