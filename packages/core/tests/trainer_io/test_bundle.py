"""A run folder as one archive: what is in it, what is not, and that no secret leaves, wherever it stood."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from lightrft.errors import RunFolderError
from lightrft.run.bundle import without_quotes, without_secrets, write_bundle
from lightrft.run.run_folder import append_failure

SECRETS = {
    "https://me:pa55word@judge.example/score": "pa55word",
    "http://judge.example/score?key=abcdef123": "abcdef123",
    "Authorization: Bearer abc.def-123456": "abc.def-123456",
    "hf_abcdefghijkl": "hf_abcdefghijkl",
    "sk-proj-abcdefghijkl": "sk-proj-abcdefghijkl",
    "ghp_abcdefghijkl": "ghp_abcdefghijkl",
    "AKIAABCDEFGHIJKL": "AKIAABCDEFGHIJKL",
    "eyJhbGciOi.eyJzdWIiOi.SflKxwRJSM": "eyJzdWIiOi",
    "api_key: s3cr3tvalue": "s3cr3tvalue",
    '{"hub_token": "s3cr3tvalue", "a": 1}': "s3cr3tvalue",
    "  wandb_api_key: 's3cr3t value'": "s3cr3t value",
    "password=s3cr3tvalue, next": "s3cr3tvalue",
    "token: s3cr3tvalue": "s3cr3tvalue",
}
PLAIN = (
    "stop_token_ids: [1, 2]", "special_tokens_in_prompts: text", "max_tokens_per_micro_batch: 4096", "scratch_tokenizer: char",
    "reward_auth_env: JUDGE_TOKEN", '{"rollout/tokens": 128, "tokens/logprob": 64}', "reward: [http://judge.example/score]", "seed: 0",
    'File "/a/b.py", line 3, in f', "api_key: null", "secret: ''",
)  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_does_not_leave(text: str) -> None:
    assert SECRETS[text] not in without_secrets(text) and "***" in without_secrets(text)


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_values_of_the_environment_do_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "rosebud-1941")
    monkeypatch.setenv("HEADER", "open sesame")
    monkeypatch.setenv("SHORT_KEY", "1")
    assert without_secrets("asked with rosebud-1941; 1 time") == "asked with ***; 1 time"
    assert without_secrets("asked with open sesame") == "asked with open sesame"
    assert without_secrets("asked with open sesame", variables=["HEADER"]) == "asked with ***"


def test_sentences_do_not_quote_rows() -> None:
    row = json.dumps({"step": 3, "text": "the label '72 apples, so' stands in 4 prompts", "name": "label"})
    assert json.loads(without_quotes("warnings.jsonl", row)) == {"step": 3, "text": "the label '...' stands in 4 prompts", "name": "label"}
    assert without_quotes("warnings.jsonl", "half a line, 'a prompt of a row'") == "half a line, '...'"
    failure = """File "/a/long/path.py", line 3\nRewardError: its completion begins 'so many words'"""
    assert without_quotes("failure.txt", failure) == """File "/a/long/path.py", line 3\nRewardError: its completion begins '...'"""


def make_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\nreward: ['judge=https://me:pa55word@host/score?key=1']\n")
    (folder / "metrics.jsonl").write_text('{"step": 1, "rollout/tokens": 12}\n')
    (folder / "warnings.jsonl").write_text(json.dumps({"step": 1, "text": "completions end in 'a b c d e f g'"}) + "\n")
    (folder / "samples.jsonl").write_text('{"prompt": "of a row"}\n')
    (folder / "eval_samples-2.jsonl").write_text("{}\n")
    (folder / "notes-of-mine.txt").write_text("private")
    (folder / "model").mkdir()
    append_failure(folder, "rank 1 failed in reward:\nTraceback ...")
    return folder


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read().decode() for member in archive.getmembers()}  # type: ignore[union-attr]


def test_what_is_packed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    bundle = write_bundle(run, tmp_path / "out.tar.gz", about={"python": "3.11"})
    found = contents(tmp_path / "out.tar.gz")
    assert set(found) == {f"run/{name}" for name in ("doctor.json", "config.yaml", "failure.txt", "metrics.jsonl", "warnings.jsonl")}
    assert bundle.packed == {name.removeprefix("run/"): len(text) for name, text in found.items()}
    assert json.loads(found["run/doctor.json"]) == {"python": "3.11"} and "rank 1 failed in reward" in found["run/failure.txt"]
    assert (
        "pa55word" not in found["run/config.yaml"] and "key=1" not in found["run/config.yaml"] and "@host/score" in found["run/config.yaml"]
    )
    assert "a b c d" not in found["run/warnings.jsonl"] and found["run/metrics.jsonl"] == (run / "metrics.jsonl").read_text()
    assert bundle.left_out["samples.jsonl"] == bundle.left_out["eval_samples-2.jsonl"] == "prompts and completions; --with-data packs it"
    assert bundle.left_out["model"] == "weights, pictures or data" and bundle.left_out["summary.json"] == "not there"


def test_data_where_it_is_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    bundle = write_bundle(run, tmp_path / "out.tar.gz", about={}, with_data=True)
    found = contents(tmp_path / "out.tar.gz")
    assert found["run/samples.jsonl"] == '{"prompt": "of a row"}\n' and "a b c d" in found["run/warnings.jsonl"]
    assert "notes-of-mine.txt" not in bundle.packed and "samples.jsonl" not in bundle.left_out


def test_bad_input(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(RunFolderError, match="holds no run: it is no folder"):
        write_bundle(tmp_path / "none", tmp_path / "out.tar.gz", about={})
    with pytest.raises(RunFolderError, match="holds no run: it has no config.yaml"):
        write_bundle(tmp_path, tmp_path / "out.tar.gz", about={})
    (tmp_path / "out.tar.gz").write_text("mine")
    with pytest.raises(RunFolderError, match="out.tar.gz' exists; give another place with --out"):
        write_bundle(run, tmp_path / "out.tar.gz", about={})
    assert (tmp_path / "out.tar.gz").read_text() == "mine"
    with pytest.raises(RunFolderError, match="cannot be written: No such file or directory; give another place with --out"):
        write_bundle(run, tmp_path / "no" / "out.tar.gz", about={})


def test_a_failure_is_kept_where_a_run_was_begun(tmp_path: Path) -> None:
    append_failure(tmp_path, "early")
    assert list(tmp_path.iterdir()) == []
    run = make_run(tmp_path / "run")
    append_failure(run, "once more")
    assert (run / "failure.txt").read_text().count("\n\n") == 2


def test_the_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    command = [sys.executable, "-m", "lightrft.cli.main", "doctor", "--bundle", str(run), "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["bundle"] == "run-bundle.tar.gz" and (tmp_path / "run-bundle.tar.gz").is_file() and "failure.txt" in said["packed"]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and again.stderr.startswith("error: 'run-bundle.tar.gz' exists; give another place with --out (docs: ")
    alone = subprocess.run([*command[:4], "--with-data"], capture_output=True, text=True, check=False)
    assert alone.returncode == 2 and alone.stderr.startswith("error: --out and --with-data belong to --bundle RUN (docs: ")
