"""The quickstart of the README runs as it stands, with a model made on the spot."""

import subprocess
import sys
from pathlib import Path

from small_run import quiet_environment

import lightrft
from lightrft.testing.tiny import tiny_model_folder

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart.py"


def test_from_a_model_s_name_to_a_trained_model(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{i} + {i} ="}}\n' for i in range(8)))
    words = [str(model), str(tmp_path / "prompts.jsonl"), str(tmp_path / "run")]
    done = subprocess.run([sys.executable, str(QUICKSTART), *words], capture_output=True, text=True, timeout=240, env=quiet_environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"trained model: {tmp_path / 'run' / 'model'}"
    trained, before = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "run" / "model", model))
    assert trained != before


def test_the_public_names_are_there() -> None:
    for name in lightrft.PUBLIC:
        assert getattr(lightrft, name).__name__ == name and name in dir(lightrft)
