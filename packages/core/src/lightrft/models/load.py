"""Loads the model and the tokenizer of a folder or hub name, with an error that a person can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import snapshot_download
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lightrft.config.model_folder import HUB_NAME, TOKENIZER_FILES, model_path_problem
from lightrft.config.tensor_headers import has_safetensors
from lightrft.engine.quiet import no_progress_bars
from lightrft.errors import ModelError
from lightrft.weights.model_class import keep_soft_cap, language_model_class
from lightrft.weights.safetensors_reader import WeightFiles

T = TypeVar("T")
MAX_NAMED = 3


@dataclass(frozen=True)
class Opened:
    """A model to prepare: on the meta device with the files of its values, or whole on the CPU because of `whole_because`."""

    model: PreTrainedModel
    weights: WeightFiles | None
    whole_because: str = ""


def open_causal_lm(path: str | Path, *, dtype: torch.dtype, trust_remote_code: bool = False, auto_class: Any = None) -> Opened:
    """The causal language model of a HF folder or hub name for `StrategyBase.prepare_*`, without a value read: ranks read what they keep.

    Where the files are no safetensors, or have other names than the model's parameters (transformers converts such ones when it loads
    them), it is loaded whole. `auto_class` is one of transformers' classes, such as `AutoModelForSequenceClassification`; None is the
    class of the configuration's language model.

    Raises:
        ModelError: as `load_causal_lm`.
    """
    _check_folder(path, trust_remote_code=trust_remote_code)

    def build() -> PreTrainedModel:
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
        with parameters_on_meta():
            loads = auto_class or language_model_class(config)
            model: PreTrainedModel = loads.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        return model

    folder = local_folder(path)
    reason = "it has no *.safetensors"
    if has_safetensors(folder):
        model, weights = _wrapped(build, what="model", path=path), WeightFiles(folder)
        missing = weights.missing(model)
        if not missing:
            if (folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(folder)
            model.config.use_cache = False
            return Opened(keep_soft_cap(model), weights)
        reason = f"its files have no {missing[0]} of that shape under that name"
    whole = load_causal_lm(path, dtype=dtype, trust_remote_code=trust_remote_code, auto_class=auto_class)
    return Opened(whole, None, reason)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made inside have their parameters on the meta device, and their buffers (rotary frequencies) with values as always."""

    def to_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> Any:  # torch declares that such a hook returns None
        if parameter.is_meta:
            return None  # registered again under another name: it has to stay the same object, or it would be untied
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        hook.remove()


def load_causal_lm(path: str | Path, *, dtype: torch.dtype, trust_remote_code: bool = False, auto_class: Any = None) -> PreTrainedModel:
    """The causal language model of a HF folder or hub name, on the CPU, every weight read from its files, KV cache off in its config.

    Raises:
        ModelError: no such folder, no config.json, no or damaged weights, weights that lack a parameter, or a model that transformers does
            not know.
    """
    _check_folder(path, trust_remote_code=trust_remote_code)

    def load() -> tuple[PreTrainedModel, dict[str, Any]]:
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
        loads = auto_class or language_model_class(config)
        loaded: Any = loads.from_pretrained(str(path), dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True)
        return cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)

    model, info = _wrapped(load, what="model", path=path)
    _check_complete(path, sorted(info["missing_keys"]))
    model.config.use_cache = False
    keep_soft_cap(model)
    return model


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a HF folder or hub name. Where it names no pad token, its end-of-sequence token pads.

    Raises:
        ModelError: no such folder, no or a damaged tokenizer in it, or one without an end-of-sequence token.

    Example::

        >>> import lightrft
        >>> tokenizer = lightrft.load_tokenizer("model")
        >>> tokenizer.decode(tokenizer("6 x 7 =", add_special_tokens=False)["input_ids"])
        '6 x 7 ='
    """
    folder = Path(path).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"model folder {str(path)!r} has no tokenizer; save one there with tokenizer.save_pretrained")
    if not folder.is_dir() and not HUB_NAME.fullmatch(str(path)):
        raise ModelError(f"model {str(path)!r}: no such folder, and not a hub name of the form owner/name")

    def load() -> Any:
        found: Any = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
        found([""])  # some entries of its configuration are first read when a text comes
        return found

    tokenizer = _wrapped(load, what="tokenizer", path=path)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"tokenizer {str(path)!r} has no end-of-sequence token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return cast("PreTrainedTokenizerBase", tokenizer)


def _check_folder(path: str | Path, *, trust_remote_code: bool) -> None:
    if problem := model_path_problem("model", str(path), trust_remote_code=trust_remote_code):
        raise ModelError(problem)


def local_folder(path: str | Path) -> Path:
    """The folder itself, or where the hub's files of that name are kept (downloaded where they are not there yet)."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    return Path(_wrapped(lambda: snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"]), what="model", path=path))


def _wrapped(load: Callable[[], T], *, what: str, path: str | Path) -> T:
    try:
        with no_progress_bars():
            return load()
    except Exception as error:  # transformers, safetensors and repository code raise anything; the cause is chained
        text = " ".join(str(error).split())
        raise ModelError(f"{what} {str(path)!r} cannot be loaded: {type(error).__name__}: {_first_sentences(text)}") from error


def _first_sentences(text: str, *, limit: int = 300) -> str:
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."


def _check_complete(path: str | Path, missing: list[str]) -> None:
    """transformers fills missing parameters with random numbers and only warns; training on from those is never meant."""
    if missing:
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        raise ModelError(
            f"model {str(path)!r}: its weight files lack {', '.join(missing[:MAX_NAMED])}{more}, which its config.json asks for; "
            "give a complete folder"
        )
