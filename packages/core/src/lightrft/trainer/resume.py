"""Whether this run may go on from that checkpoint: settings of the saved state must be the same; others are told, or do not matter."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightrft.config.load import make_config
from lightrft.config.reward_names import model_folder, reward_function
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.errors import CheckpointError, ConfigError
from lightrft.run.checkpoint_folder import LATEST, find, read, saved_in
from lightrft.trainer.resume_settings import BELONG_TO_STATE, OF_NO_CONSEQUENCE, UNLESS
from lightrft.types import sources_of


def changed_settings(saved: Mapping[str, Any], config: Config) -> list[str]:
    """`name: saved -> now` for each setting that has changed and matters from here on.

    Raises:
        CheckpointError: a setting that belongs to the saved state has changed.
    """
    now = config.model_dump()
    try:
        before = make_config({name: value for name, value in saved.items() if name in now}).model_dump()
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's settings cannot be read by this version: {error.problems[0]}") from None
    different = [name for name in now if before[name] != now[name] and name not in OF_NO_CONSEQUENCE]
    held = {*BELONG_TO_STATE, *(name for name, other in UNLESS.items() if before[other] or now[other])}
    refused = [f"{name}={before[name]!r}, here {now[name]!r}" for name in different if name in held]
    if refused:
        raise CheckpointError(f"the checkpoint was saved with {'; '.join(refused)}; set it as it was, or begin a run without resume_from")
    return [f"{name}: {before[name]!r} -> {now[name]!r}" for name in different]


def check_resume(config: Config) -> Path:
    """The checkpoint that `resume_from` names, when this configuration may go on from it. Looks at small files only.

    Raises:
        CheckpointError: no checkpoint, a damaged one, other settings, or newer checkpoints in the same run folder.
    """
    run = Path(config.output_dir)
    folder = find(config.resume_from, run=run)
    if config.overwrite_output_dir and in_run(folder, run):
        raise CheckpointError(
            f"overwrite_output_dir would remove the run that resume_from={config.resume_from!r} goes on with; leave one of them out"
        )
    step = read(folder)["step"]
    changed_settings(read(folder)["config"], config)
    newer = [one.folder.name for one in saved_in(run) if one.step > step]
    if in_run(folder, run) and newer and config.resume_from != LATEST:
        raise CheckpointError(
            f"resume_from={config.resume_from!r}: the run folder has newer checkpoints ({', '.join(newer)}), which would be replaced; "
            "use resume_from latest, or another output_dir"
        )
    return folder


def in_run(folder: Path, run: Path) -> bool:
    """Whether a checkpoint belongs to that run folder."""
    return run.resolve() in folder.resolve().parents


class PromptsDigest:
    """Part of the run's state: refuses other training prompts than those that the run began with."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for prompt in prompts:
            digest.update(array("i", prompt.token_ids).tobytes())
            digest.update(b"\0" if prompt.answer is None else prompt.answer.encode())
            for image in (source for one in prompt.images for source in sources_of(one)):
                digest.update(image if isinstance(image, bytes) else f"{Path(image).name} {Path(image).stat().st_size}".encode())
        self._digest = digest.hexdigest()
        self._number = len(prompts)

    def state_dict(self) -> dict[str, Any]:
        return {"digest": self._digest, "number": self._number}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["digest"] != self._digest:
            raise CheckpointError(
                f"the training prompts are not those that the run began with ({state['number']} then, {self._number} now, by their "
                "tokens and answers); give the same prompt_data, template and tokenizer"
            )


class FilesDigest:
    """Part of the run's state: notices that files which the run reads are not those that it began with.

    Of a large file the size and the first and last MiB count. `refuses`: another content is an error, else it is told.
    """

    def __init__(self, what: str, paths: Sequence[Path], *, refuses: bool) -> None:
        self._what, self._refuses = what, refuses
        self._digests = {name: _digest(path) for name, path in _named(paths).items() if path.is_file()}

    def state_dict(self) -> dict[str, Any]:
        return {"digests": dict(self._digests)}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Sentences about what differs. Raises CheckpointError where this refuses."""
        before = dict(state["digests"])
        different = sorted(name for name in {*before, *self._digests} if before.get(name) != self._digests.get(name))
        if different and self._refuses:
            raise CheckpointError(
                f"{self._what} is not the one that the run began with ({', '.join(different[:3])} differ); give the same, or begin a run "
                "without resume_from"
            )
        return [f"changed since the checkpoint: {self._what} {name}" for name in different]


def _digest(path: Path) -> str:
    found = hashlib.blake2b(str(path.stat().st_size).encode(), digest_size=16)
    with path.open("rb") as file:
        found.update(file.read(1 << 20))
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        found.update(file.read())
    return found.hexdigest()


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """By their own names, and with as many of the folders above as tell files of one name apart; a run may be moved."""
    found: dict[str, Path] = {}
    for path in sorted({*paths}):
        tails = ["/".join(path.parts[-length:]) for length in range(1, len(path.parts) + 1)]
        others = [str(other) for other in paths if other != path]
        found[next((tail for tail in tails if not any(f"/{other}".endswith(f"/{tail}") for other in others)), str(path))] = path
    return found


def user_files(config: Config) -> list[Path]:
    """The Python files and reward models that the settings name: rewards `path/to/file.py:function` and `module:function`, with or without
    an adapter or a name of their own, and the environment, with the modules beside them that they import; `model:FOLDER`.
    """
    places = [found.place for reward in config.reward if (found := reward_function(reward))]
    files = [_source(place.rpartition(":")[0]) for place in (*places, config.environment or "")]
    models = [judge.path for reward in config.reward if (judge := model_folder(reward))]
    return _with_imports([file for file in files if file]) + [path for folder in models for path in weight_files(Path(folder).expanduser())]


def _source(place: str) -> Path | None:
    """The file of `path/to/file.py` or of a module; None for an empty place, and for what no file holds."""
    if place.endswith(".py") or not place:
        return Path(place).expanduser() if place else None
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError):  # whoever loads it tells of it
        return None
    return Path(found.origin) if found and found.origin and found.has_location else None


def _with_imports(files: Sequence[Path]) -> list[Path]:
    """These files, and those in the same folder that their import statements name, and theirs."""
    found: list[Path] = []
    waiting = list(files)
    while waiting:
        file = waiting.pop(0)
        if file in found:
            continue
        found.append(file)
        for name in _imported(file) if file.is_file() else ():
            waiting += [path for path in (file.parent / f"{name}.py", file.parent / name / "__init__.py") if path.is_file()]
    return found


def _imported(file: Path) -> list[str]:
    """The first parts of the modules that a file imports, wherever in it."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):  # whoever loads it tells of it
        return []
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return [name.partition(".")[0] for name in names]


def weight_files(folder: Path) -> list[Path]:
    """What a model's folder holds of weights, and its configuration; none for a hub's name."""
    return [*folder.glob("*.safetensors"), *folder.glob("config.json")] if folder.is_dir() else []
