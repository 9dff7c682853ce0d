"""Importing a file of rewards: once for the same text, with the modules beside it importable; whatever goes wrong names the user's line."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from lightrft.errors import RewardError
from lightrft.rewards.calling import put_back

_DIGEST = "__lightrft_digest__"
_OWN = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple(str(Path(path).resolve()) for path in {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def import_file(path: Path, *, name: str, what: str = "reward") -> ModuleType:
    """The module of a file, for the reward (or another thing, `what`) `name`. A file that has not changed since is not run again.

    While it loads, its folder is first on the import path, as for a script; afterwards last, for imports inside functions.

    Raises:
        RewardError: no such file; it raises, or exits, while it is imported (file and line; chained).
    """
    if not path.is_file():
        raise RewardError(f"{what} {name!r}: no file {str(path)!r} (looked in {str(Path.cwd())!r})")
    source = path.resolve()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    # The name is unique to the path and registered, so that dataclasses and pickle inside the file work.
    module_name = f"lightrft_reward_{hashlib.sha256(str(source).encode()).hexdigest()[:12]}"
    known = sys.modules.get(module_name)
    if known is not None and getattr(known, _DIGEST, None) == digest:
        return known
    spec = importlib.util.spec_from_file_location(module_name, source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with put_back(), _neighbours(source.parent):
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise import_failed(name, error, what=what) from error
    vars(module)[_DIGEST] = digest
    return module


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """`folder` first on the import path. Modules of the same names from another folder of rewards make room: those that hold them keep
    them.
    """
    text = str(folder)
    for name in [name for name, module in sys.modules.items() if _is_anothers(name, module, folder)]:
        for one in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            del sys.modules[one]
    sys.path.insert(0, text)
    try:
        yield
    finally:
        sys.path.remove(text)
        if text not in sys.path:
            sys.path.append(text)


def _is_anothers(name: str, module: ModuleType, folder: Path) -> bool:
    """Whether a loaded module has the name of one in `folder`, and is another's."""
    file = getattr(module, "__file__", None)
    if not file or name == "__main__" or is_library(file):
        return False
    beside = (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
    return beside and Path(file).resolve().parent not in (folder, folder / name)


def import_failed(name: str, error: BaseException, *, what: str = "reward") -> RewardError:
    """The error of a reward whose module raised while it was imported."""
    hint = ""
    if isinstance(error, ImportError) and "relative import" in str(error):
        hint = "; a file is imported by itself: write `from NAME import ...` for a module beside it, or give package.module:function"
    return RewardError(f"{what} {name!r} cannot be imported: {said(error)}{place(error)}{hint}")


def said(error: BaseException) -> str:
    """An exception in one line; `sys.exit` by what was called."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    try:
        words = str(error)
    except Exception as second:  # the user's own class
        words = f"its __str__ raises {type(second).__name__}"
    return f"{type(error).__name__}: {' '.join(words.split())}"


def place(error: BaseException) -> str:
    """`, at FILE:LINE in FUNCTION` of the innermost line of the user's own; without one, of the innermost line; empty without any."""
    if isinstance(error, SyntaxError) and error.filename:
        return f", at {error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(("<frozen", _OWN))]
    own = [frame for frame in frames if not is_library(frame.filename)] or frames
    return f", at {own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""


def is_library(file: str) -> bool:
    """Whether a file is Python's own, or of an installed package."""
    return str(Path(file).resolve()).startswith(_LIBRARIES) or file.startswith("<")
