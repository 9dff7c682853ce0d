"""The reward of each row of a file: rewards tried on completions that exist, without a model, an engine or torch."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightrft.data.columns import answers_at
from lightrft.data.rows import Table, load_table
from lightrft.errors import ConfigError, DataError, RewardError
from lightrft.rewards.load import NamedReward
from lightrft.rewards.score import Scores, score
from lightrft.types import Sample

REASONS = ("stop", "length", "abort", "env_error")
MOST_PROBLEMS = 20


def score_file(path: str, *, out: str, rewards: Sequence[NamedReward], reward_key: str = "") -> dict[str, Any]:
    """Scores the rows of a data file and writes one row for each, in order, to `out` (JSONL), whole or not at all.

    A row has `prompt`, `completion` and, where a reward needs it, `answer`; also read are `finish_reason` ("stop") and `num_tokens` (0),
    and a reward sees the whole row as `sample.row`. What is written is the row with `reward`, the weighted sum, and `parts`, each
    reward's own number (null where `reward_key` names others). Returns counts and means.

    Raises:
        ConfigError: rows that are no samples, one line for each of the first 20, with its place in the file.
        DataError: the file cannot be read, or `out` not written.
        RewardError: a reward failed; where one row alone makes it fail, the message begins with the place of that row.
    """
    table = load_table(path, required=[])
    samples = samples_in(table)
    if Path(out).expanduser().resolve() == Path(path).expanduser().resolve():
        raise DataError(f"out={out!r} is the data file itself; give another path")
    start = time.perf_counter()
    scores = score_samples(samples, table=table, rewards=rewards, reward_key=reward_key)
    seconds = time.perf_counter() - start
    lines = [
        json.dumps(_present(row) | {"reward": total, "parts": {name: values[index] for name, values in scores.parts.items()}}, default=str)
        for index, (row, total) in enumerate(zip(table.rows, scores.total, strict=True))
    ]
    _write(Path(out).expanduser(), "".join(line + "\n" for line in lines))
    return {
        "rows": len(lines),
        "reward": _summary(scores.total),
        "parts": {name: _summary(values) for name, values in scores.parts.items()},
        "weights": {reward.name: reward.weight for reward in rewards},
        "seconds": round(seconds, 3),
        "out": out,
    }


def samples_in(table: Table) -> list[Sample]:
    """The rows as samples; raises ConfigError as `score_file`."""
    problems: list[str] = []
    samples = []
    for index, row in enumerate(table.rows):
        given = _present(row)
        wrong = _wrong(given)
        if wrong:
            problems.append(f"{table.where(index)}: {wrong}")
            continue
        answers = answers_at(given, "answer", where=table.where(index))
        samples.append(
            Sample(
                prompt=_text(row["prompt"]),
                completion=row["completion"],
                answer=answers[0] if answers else None,
                answers=answers,
                raw_completion=given.get("raw_completion") or row["completion"],
                row=row,
                finish_reason=given.get("finish_reason", "stop"),
                num_tokens=given.get("num_tokens", 0),
            )
        )
    if problems:
        more = [f"{table.path}: {len(problems) - MOST_PROBLEMS} more rows are wrong"] if len(problems) > MOST_PROBLEMS else []
        raise ConfigError(problems[:MOST_PROBLEMS] + more)
    return samples


def _present(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that this row has; a table gives every row those of all."""
    return {name: value for name, value in row.items() if value is not None}


def _wrong(row: Mapping[str, Any]) -> str:
    """What is wrong with a row, or nothing."""
    for column, kinds, words in (("prompt", (str, list), "text or a list of chat messages"), ("completion", (str,), "text")):
        if column not in row:
            return f"no column {column!r} (columns: {', '.join(map(str, row)) or 'none'})"
        if not isinstance(row[column], kinds):
            return f"{column}={row[column]!r:.60} is a {type(row[column]).__name__}, expected {words}"
    try:
        answers_at(row, "answer", where="")
    except DataError as error:
        return str(error).removeprefix(": ")
    if row.get("finish_reason", "stop") not in REASONS:
        return f"finish_reason={row['finish_reason']!r:.60} is not one of {', '.join(REASONS)}"
    if type(row.get("num_tokens", 0)) is not int:
        return f"num_tokens={row['num_tokens']!r:.60} is not a whole number"
    return ""


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message.get("content", "")) if isinstance(message, Mapping) else str(message) for message in prompt)


def score_samples(samples: Sequence[Sample], *, table: Table, rewards: Sequence[NamedReward], reward_key: str) -> Scores:
    """Their scores; raises RewardError as `score_file`."""
    try:
        return score(samples, rewards=rewards, reward_key=reward_key)
    except RewardError as error:
        if error.retried:  # a server that does not answer: asking again for each row would take for ever
            raise
        for index, sample in enumerate(samples):
            try:
                score([sample], rewards=rewards, reward_key=reward_key)
            except RewardError as alone:
                raise RewardError(f"{table.where(index)}: {alone}") from alone
        raise


def _summary(values: Sequence[float | None]) -> dict[str, float]:
    """Of the rows for which a reward counts; of none, zeros."""
    numbers = [value for value in values if value is not None] or [0.0]
    return {"mean": sum(numbers) / len(numbers), "min": min(numbers), "max": max(numbers)}


def _write(path: Path, text: str) -> None:
    """Beside the place, then renamed: a run that is cut off leaves the old file or none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes it private
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"out={str(path)!r} cannot be written: {error.strerror or error}") from error
