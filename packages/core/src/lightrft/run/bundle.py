"""A run folder as one archive for a bug report: settings, versions, metrics, warnings, failures; no secrets, no data unless asked."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightrft.errors import RunFolderError
from lightrft.run.run_data import read_run

ALWAYS = ("config.yaml", "environment.json", "backend.json", "engine.json", "unverified_weights.json", "summary.json", "failure.txt")
LOGS = ("metrics.jsonl", "warnings.jsonl")
DATA = ("samples.jsonl", "distributions.jsonl", "eval_samples-*.jsonl")
"""What holds prompts and completions; packed with `with_data` alone."""
QUOTES_DATA = ("warnings.jsonl", "failure.txt", "summary.json")
"""Files whose sentences may quote a prompt or a completion."""
HIDDEN = "***"
SECRET_VARIABLE = re.compile(r"(token|secret|password|passwd|key|credentials?|authorization)$", re.IGNORECASE)
SHORTEST_SECRET = 6
"""Of a variable's value, in characters: shorter ones, such as `1`, stand in any file."""
NAMED = r"[\w.-]*(?:secret|passw(?:or)?d|api_?key|credentials?|authorization|(?:access|auth|refresh|hf|hub)_?token)|token"
SECRETS = (
    (re.compile(r"(\w+://)[^/\s:@'\"]+:[^/\s@'\"]+@"), rf"\g<1>{HIDDEN}@"),  # user:password before a host
    (re.compile(r"(\w+://[^\s?'\"]+\?)[^\s'\"]+"), rf"\g<1>{HIDDEN}"),  # a query may hold a key
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\g<1> {HIDDEN}"),
    (re.compile(r"\b(hf_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abpr]-|AKIA|AIza)[\w-]{8,}"), HIDDEN),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"), HIDDEN),  # a JSON web token
    (re.compile(rf"""(?i)((?<![\w.-])["']?(?:{NAMED})["']?\s*[:=]\s*)("[^"]+"|'[^']+'|(?!null\b|"|')[^\s,}}]+)"""), rf"\g<1>{HIDDEN}"),
)
QUOTED = re.compile(r"'(?:[^'\\\n]|\\.){9,}'|(?<!File )\"(?:[^\"\\\n]|\\.){9,}\"")


@dataclass
class Bundle:
    """What was packed, in bytes by name, and what was left out, with the reason by name."""

    packed: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def write_bundle(run: Path, out: Path, *, about: Mapping[str, Any], with_data: bool = False) -> Bundle:
    """Writes `out`, a tar.gz, of the run folder `run` and `about`, what `lightrft doctor` says of this machine.

    Raises:
        RunFolderError: no run there, `out` exists, or it cannot be written.
    """
    run = run.expanduser()
    config = read_run(run).config
    logs = Path(config.get("log_dir") or run).expanduser()
    bundle = Bundle()
    files = [*(run / name for name in ALWAYS), *(logs / name for name in LOGS)]
    data = [path for pattern in DATA for path in sorted(logs.glob(pattern))]
    texts = {"doctor.json": json.dumps(dict(about), indent=2)}
    for path in [*files, *(data if with_data else [])]:
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            texts[path.name] = text if with_data or path.name not in QUOTES_DATA else without_quotes(path.name, text)
        elif path not in data:
            bundle.left_out[path.name] = "not there"
    bundle.left_out |= {} if with_data else {path.name: "prompts and completions; --with-data packs it" for path in data}
    bundle.left_out |= {path.name: "weights, pictures or data" for path in sorted(run.iterdir()) if path.is_dir()}
    hidden = {name: without_secrets(text, variables=[str(config.get("reward_auth_env"))]) for name, text in texts.items()}
    bundle.packed = {name: len(text.encode()) for name, text in hidden.items()}
    _pack(out, hidden, folder=run.resolve().name)
    return bundle


def without_secrets(text: str, *, variables: Collection[str] = ()) -> str:
    """The text without passwords and queries of addresses, tokens of known forms, values under names such as `api_key`, and the values of
    this process's environment variables that have such names or are among `variables`.

    Example:
        >>> without_secrets("https://me:pw@host/score?key=1")
        'https://***@host/score?***'
    """
    for name, value in os.environ.items():
        if (SECRET_VARIABLE.search(name) or name in variables) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, HIDDEN)
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def without_quotes(name: str, text: str) -> str:
    """The text of a file with what it quotes as `...`: a sentence about a row may quote the row. Of JSON, the strings' own text."""
    if name == "failure.txt":
        return QUOTED.sub("'...'", text)
    rows = text.split("\n") if name.endswith(".jsonl") else [text]
    return "\n".join(_unquoted(row) for row in rows)


def _unquoted(row: str) -> str:
    try:
        found = json.loads(row)
    except ValueError:
        return QUOTED.sub("'...'", row)
    return json.dumps(_each(found), indent=None if "\n" not in row.strip() else 2)


def _each(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _each(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_each(one) for one in value]
    return QUOTED.sub("'...'", value) if isinstance(value, str) else value


def _pack(out: Path, texts: Mapping[str, str], *, folder: str) -> None:
    if out.exists():
        raise RunFolderError(f"{str(out)!r} exists; give another place with --out")
    try:
        with tarfile.open(out, "x:gz") as archive:
            for name, text in texts.items():
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
    except OSError as error:
        out.unlink(missing_ok=True)
        raise RunFolderError(f"{str(out)!r} cannot be written: {error.strerror or error}; give another place with --out") from error
