"""`lightrft score` gives every row its reward, in order, and says which row is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightrft.cli.main import SCORE
from lightrft.cli.score import run_score
from lightrft.errors import ConfigError, DataError, RewardError

ROWS: list[dict[str, Any]] = [
    {"prompt": "6 * 3?", "completion": "so\n#### 18", "answer": "#### 18", "id": 7},
    {"prompt": [{"role": "user", "content": "6 * 3?"}], "completion": "#### 17", "answer": 17},
    {"prompt": "5?", "completion": "no idea", "answer": "5"},
]
SHOUT = """
def loud(samples):
    return [float(s.completion.isupper()) for s in samples]
def picky(samples):
    if any(s.row.get("id") == 7 for s in samples):
        raise KeyError("id")
    return [1.0 for s in samples]
"""


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    (folder / "shout.py").write_text(SHOUT)
    return path


def score(folder: Path, *words: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    out = folder / "scores" / "out.jsonl"
    result, _ = run_score([*words, "--data", str(folder / "data.jsonl"), "--out", str(out)], description=SCORE)
    return result, [json.loads(line) for line in out.read_text().splitlines()]


def test_one_output_row_for_each_input_row_in_order(tmp_path: Path) -> None:
    write(tmp_path, *ROWS)
    result, rows = score(tmp_path, "--reward", "exact_match", "format", "--reward-weights", "1", "0.5")
    assert [(row["reward"], row["parts"]) for row in rows] == [
        (0.5, {"exact_match": 0.0, "format": 1.0}),
        (0.0, {"exact_match": 0.0, "format": 0.0}),
        (0.0, {"exact_match": 0.0, "format": 0.0}),
    ]
    assert [{k: v for k, v in row.items() if k not in ("reward", "parts")} for row in rows] == ROWS
    assert result["rows"] == 3 and result["reward"] == {"mean": pytest.approx(0.5 / 3), "min": 0.0, "max": 0.5}


def test_the_math_reward(tmp_path: Path) -> None:
    pytest.importorskip("math_verify", reason="the extra lightrft[math] is not installed")
    write(tmp_path, *ROWS)
    _, rows = score(tmp_path, "--reward", "math")
    assert [row["reward"] for row in rows] == [1.0, 1.0, 0.0]


def test_a_function_of_the_user_sees_the_row(tmp_path: Path) -> None:
    write(tmp_path, {"prompt": "p", "completion": "AB"}, {"prompt": "p", "completion": "ab"})
    _, rows = score(tmp_path, "--reward", f"{tmp_path}/shout.py:loud")
    assert [row["reward"] for row in rows] == [1.0, 0.0]


def test_every_bad_row_is_named_with_its_line_and_nothing_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS[0], "", {"prompt": "p"}, {"prompt": 3, "completion": "c"}, {"prompt": "p", "completion": None})
    with pytest.raises(ConfigError) as caught:
        score(tmp_path, "--reward", "format")
    assert caught.value.problems == [
        f"{path}:3: no column 'completion' (columns: prompt)",
        f"{path}:4: prompt=3 is a int, expected text or a list of chat messages",
        f"{path}:5: no column 'completion' (columns: prompt)",
    ]
    assert not (tmp_path / "scores").exists()


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS[0], "{nope")
    with pytest.raises(DataError, match=f"{path}:2: not JSON"):
        score(tmp_path, "--reward", "format")


def test_the_row_on_which_a_reward_fails_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS[1], ROWS[0])
    with pytest.raises(RewardError, match=rf"^{path}:2: reward 'picky' raised KeyError: 'id'"):
        score(tmp_path, "--reward", f"{tmp_path}/shout.py:picky")
    path = write(tmp_path, ROWS[0], {"prompt": "p", "completion": "5"})
    with pytest.raises(RewardError, match=f"^{path}:2: reward 'exact_match' raised ValueError: sample 0 has no reference answer"):
        score(tmp_path, "--reward", "exact_match")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "--reward is not set"),
        (["--reward", "formt"], "formt"),
        (["--reward", "format", "--reward_weights", "1", "2"], "reward_weights has 2 numbers for 1 rewards (format); give one each"),
        (["--reward", "format", "--reward_weigth", "1"], "unexpected argument '--reward_weigth'; did you mean '--reward_weights'?"),
        (["--reward", "gone.py:f"], "no such file 'gone.py'"),
        (["--reward", "format", "--data", "gone.jsonl"], "data='gone.jsonl': no such file"),
    ],
)
def test_wrong_words_are_told_in_a_line(tmp_path: Path, words: list[str], problem: str) -> None:
    path = write(tmp_path, *ROWS)
    places = ["--out", str(tmp_path / "o"), *([] if "--data" in words else ["--data", str(path)])]
    with pytest.raises(ConfigError) as caught:
        run_score([*words, *places], description=SCORE)
    assert any(problem in line for line in caught.value.problems)


def test_the_data_file_is_never_written_over(tmp_path: Path) -> None:
    path = write(tmp_path, *ROWS)
    with pytest.raises(DataError, match="is the data file itself"):
        run_score(["--reward", "format", "--data", str(path), "--out", str(path)], description=SCORE)


def test_the_command_ends_with_json_and_loads_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path, *ROWS)
    code = (
        "import sys\nfrom lightrft.cli.main import run\nsys.argv[0] = 'lightrft'\n"
        "run.__globals__['app'](args=sys.argv[1:], standalone_mode=False)\n"
        "print('heavy', sorted({'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    words = ["score", "--reward", "format", "--data", str(path), "--out", str(tmp_path / "o.jsonl"), "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 0 and "heavy []" in done.stderr, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == 3 and len((tmp_path / "o.jsonl").read_text().splitlines()) == 3
    done = subprocess.run([sys.executable, "-m", "lightrft.cli.main", *words[:-3]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: --out is not set") and "Traceback" not in done.stderr


def test_reward_models_beside_functions(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch
    from transformers import AutoModelForSequenceClassification

    from lightrft.testing.tiny import tiny_reward_folder, tiny_tokenizer

    alphabet = "0123456789 =+-*/abcdefghijklmnopqrstuvwxyz.,?\n"
    folder = tiny_reward_folder(tmp_path / "rm", seed=3)
    rows = [{"prompt": f"{n} + {n} =", "completion": "7" * n} for n in range(1, 5)]
    write(tmp_path, *rows)
    result, found = score(tmp_path, "--reward", f"judge=model:{folder}", f"{tmp_path}/shout.py:loud", "--reward_weights", "2", "1")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for row, one in zip(rows, found, strict=True):
        ids = torch.tensor([tiny_tokenizer(alphabet)(row["prompt"] + row["completion"])["input_ids"]])
        with torch.no_grad():
            expected = float(model(input_ids=ids).logits[0, 0])
        assert one["parts"]["judge"] == pytest.approx(expected, abs=1e-5) and one["reward"] == pytest.approx(2 * expected, abs=2e-5)
    assert result["warnings"] == [] and set(result["parts"]) == {"judge", "loud"}
    write(tmp_path, {"prompt": "<|im_start|>user 3?<|im_end|>", "completion": "7"})
    result, _ = score(tmp_path, "--reward", f"judge=model:{folder}")
    [warning] = result["warnings"]
    assert warning.startswith("reward model 'judge' on the wrong template: its input has '<|im_start|>'")
    with pytest.raises(ConfigError, match="`lightrft score` is one process"):
        score(tmp_path, "--reward", f"judge=model:{folder}", "--reward_shard_size", "2")
