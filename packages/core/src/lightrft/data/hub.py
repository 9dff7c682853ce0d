"""Datasets of the Hugging Face hub, by `datasets.load_dataset`. What was read once is in its cache, and needs no network any more.

Of the ranks of a job only rank 0 asks the hub; the others find the dataset in the cache, on a machine that has none they ask as well.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from lightrft.config.data_sources import DEFAULT_SPLIT, HubName
from lightrft.errors import DataError

REACH_S = 4.0
"""Seconds in which the hub must have answered once, before anything is asked of it: its own clients try for much longer."""
INSTALL = "needs the `datasets` package: pip install 'lightrft[datasets]'"


def hub_rows(hub: HubName) -> list[dict[str, Any]]:
    """The rows of the split that `hub` names (train, where it names none), in its order.

    Raises:
        DataError: no `datasets`, no such dataset, subset or split (those that exist), or no network and not in the cache.
    """
    splits = _splits(hub.repo, hub.subset)
    split = hub.split or DEFAULT_SPLIT
    if split not in splits:
        example = f"{hub.repo}:{hub.subset}:{next(iter(splits))}"
        raise DataError(f"{hub.repo}: there is no split {split!r}; possible: {', '.join(splits)}; write it out, as {example}")
    return [dict(row) for row in splits[split]]


@cache
def _splits(repo: str, subset: str) -> Any:
    """The splits by name. They are files on disk: to keep them in this process takes no memory."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"{repo} is a dataset of the hub, and reading one {INSTALL}") from None
    if os.environ.get("RANK", "0") != "0":
        # Not there, without this subset, or damaged: the hub is asked.
        with suppress(OSError, ValueError, datasets.exceptions.DatasetsError):
            return _from_cache(repo, subset)
    if reason := _unreachable():
        try:
            return _from_cache(repo, subset)
        except Exception as error:
            # With a ConnectionError it says only that it is offline; else which subsets the cache has.
            why = "" if isinstance(error, ConnectionError) else f" ({_one_line(error)})"
            raise DataError(
                f"{repo}: no such file or folder here, and as a dataset of the hub it cannot be had: {reason}, and it is not in the cache "
                f"{str(datasets.config.HF_DATASETS_CACHE)!r}{why}; connect, or give the data as a file"
            ) from error
    try:
        return datasets.load_dataset(repo, subset or None)
    except Exception as error:  # its errors have no common class
        raise DataError(_refused(repo, subset, error)) from error


def _refused(repo: str, subset: str, error: Exception) -> str:
    """Why the hub did not give it; of a subset that is not there, or not named, those that are."""
    import datasets

    try:
        subsets = datasets.get_dataset_config_names(repo)
    except Exception:  # then it is not the subset
        subsets = []
    if subsets and subset not in subsets:
        asked = f"there is no subset {subset!r}" if subset else "it has several subsets, and none is named"
        return (
            f"{repo}: {asked}; possible: {', '.join(subsets)}; write it as {repo}:{subsets[0]}, or with a split {repo}:{subsets[0]}:SPLIT"
        )
    return f"{repo}: no such file or folder here, and the hub does not give it: {_one_line(error)}"


def _from_cache(repo: str, subset: str) -> Any:
    import datasets

    with _offline(datasets):
        return datasets.load_dataset(repo, subset or None)


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """`datasets` as with HF_DATASETS_OFFLINE=1, which it reads from the environment only when it is imported. Without its warnings."""
    before, level = datasets.config.HF_HUB_OFFLINE, datasets.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        datasets.logging.set_verbosity(level)


@cache
def _unreachable() -> str:
    """Why the hub cannot be asked, in words; empty where it answers. It is tried once in a process."""
    import datasets
    import huggingface_hub

    if datasets.config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"
    endpoint, failures = datasets.config.HF_ENDPOINT, [f"no answer in {REACH_S:.0f} s"]

    def ask() -> None:
        try:
            huggingface_hub.get_session().head(endpoint, timeout=REACH_S)
            failures[0] = ""
        except Exception as error:  # of whichever library it uses for HTTP
            failures[0] = _one_line(error)

    # A daemon that is left behind: no time-out of HTTP bounds the look-up of a host's name.
    thread = threading.Thread(target=ask, name="lightrft-hub", daemon=True)
    thread.start()
    thread.join(REACH_S)
    return f"{endpoint} cannot be reached ({failures[0]})" if failures[0] else ""


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
