"""Whether a model folder is a plain checkpoint of its architecture: transformers' own classes are asked, on the meta device.

Every tensor of the files has its place and its shape in the model, every parameter and saved buffer its values; tokenizer and
configurations can be read. No tensor is loaded.
"""

from __future__ import annotations

import copy
import inspect
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, GenerationConfig

from lightrft.config.model_folder import FLOATS, model_path_problem, plain_headers, quantised_tensor, quantised_tensors, read_json
from lightrft.config.quantised import quantisation
from lightrft.config.tensor_headers import TensorHeader, has_safetensors
from lightrft.engine.quiet import no_progress_bars
from lightrft.engine.stop_tokens import stop_tokens
from lightrft.errors import ModelError
from lightrft.models.load import load_tokenizer
from lightrft.weights.buckets import saved_buffers, tied_names
from lightrft.weights.model_class import ignored_on_load, language_model_class
from lightrft.weights.torch_files import headers_of, torch_tensors

Shapes = dict[str, tuple[int, ...]]
MAX_NAMED = 3
CONVERTED = "(converted)"
ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta",
    "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types that transformers loads as causal ones too, masked or not as `is_decoder` says."""
COMPARED = 2**24
"""Bytes of two tensors that are compared at a time."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ROW, MOST_LOOKED_AT = 2**14, 2000
"""Bytes of a tensor, and tensors, that are looked at for NaN: 32 MiB at most, whatever the model's size."""


def folder_problem(
    name: str,
    path: str,
    *,
    auto_class: Any = None,
    trust_remote_code: bool = False,
    tokenizer: bool = False,
    dequantises: bool = False,
    written: str | None = None,
) -> str:
    """As `model_path_problem`, and then everything that takes the model's classes; empty where nothing is wrong, and for a hub name.

    `auto_class` is transformers' class that the run will load it with (None: that of its language model).
    """
    found = model_path_problem(
        name, path, trust_remote_code=trust_remote_code, tokenizer=tokenizer, dequantises=dequantises, written=written
    )
    if found:
        return found
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return ""
    with no_progress_bars():
        problems = _problems(folder, auto_class=auto_class, trust_remote_code=trust_remote_code, tokenizer=tokenizer)
        found = next(problems, "")
    return f"{name}={written or path!r}: {found}" if found else ""


def empty_model(path: str | Path, *, auto_class: Any = None, trust_remote_code: bool = False) -> Any:
    """The folder's model without values, on the meta device."""
    config = AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return (auto_class or language_model_class(config)).from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)


def _problems(folder: Path, *, auto_class: Any, trust_remote_code: bool, tokenizer: bool) -> Iterator[str]:
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (Exception, SystemExit) as error:  # of transformers, or of the repository's code: the cause is told
        yield _of_config(error, trust_remote_code=trust_remote_code)
        return
    if problem := _more_layers_than_tensors(folder):
        yield problem
        return
    try:
        model = empty_model(folder, auto_class=auto_class, trust_remote_code=trust_remote_code)
        tensors: dict[str, torch.Tensor] = dict(model.named_parameters()) | saved_buffers(model)
    except (Exception, SystemExit) as error:  # as above
        yield f"its config.json gives no model: {_words(error)}"
        return
    if auto_class is None and model.config.model_type in ENCODERS and not model.config.is_decoder:
        yield (
            f"config.json is that of an encoder ({model.config.model_type}), which reads in both directions and generates no text; give a "
            "decoder, or set is_decoder to true where it was trained as one"
        )
    if _takes_no_text_alone(model):
        yield f"{type(model).__name__} takes no text without an image, and text alone is what a run's checks ask; name another model"
    yield from _of_weights(folder, model, tensors)
    if model.config.return_dict is False:
        yield "config.json has return_dict=false, with which a model answers in tuples without names; take the entry out"
    with tempfile.TemporaryDirectory(prefix="lightrft-config-") as there:
        try:
            model.config.save_pretrained(there)
        except Exception as error:  # as above
            yield f"transformers would not save its config.json again, as the end of a run does: {_words(error)}"
    if (folder / "generation_config.json").is_file():
        try:
            GenerationConfig.from_pretrained(folder)
        except Exception as error:  # as above
            yield f"generation_config.json cannot be used: {_words(error)}"
    if tokenizer:
        try:
            stop_tokens(folder, tokenizer=load_tokenizer(folder, trust_remote_code=trust_remote_code))
        except ModelError as error:
            yield str(error)


def _takes_no_text_alone(model: Any) -> bool:
    pixels = inspect.signature(type(model).forward).parameters.get("pixel_values")
    return pixels is not None and pixels.default is pixels.empty


def _more_layers_than_tensors(folder: Path) -> str:
    """A damaged number of layers would be built one by one, for hours, before a shape is compared."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    layers = (text if isinstance(text, dict) else config).get("num_hidden_layers")
    if not isinstance(layers, int) or not has_safetensors(folder):
        return ""
    number = len(plain_headers(folder, config))
    return f"config.json asks for num_hidden_layers={layers}, and the files hold {number} tensors in all" if layers > number else ""


def _of_config(error: BaseException, *, trust_remote_code: bool) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text and not trust_remote_code:
        return "the model brings its own code; read it, then set --trust_remote_code"
    if "does not recognize this architecture" in text or "model type" in text:
        found = re.search(r"model type `?([^`\s]+)`?", text)
        kind = repr(found[1]) if found else "of config.json"
        return f"model_type {kind} is not known to transformers {transformers.__version__}; upgrade it, or correct config.json"
    return f"its config.json cannot be used: {_words(error)}"


def _of_weights(folder: Path, model: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    if has_safetensors(folder):
        config = read_json(folder / "config.json")
        headers = plain_headers(folder, config)
        yield from _misfits(model, tensors, headers, same=lambda one, other: _same_bytes(headers[one], headers[other]))
        if not quantisation(config):
            yield from _no_numbers(model, {name: partial(_first_values, header) for name, header in headers.items()})
        return
    try:
        held = torch_tensors(folder)
    except ValueError as error:
        yield str(error)
        return
    headers = headers_of(held, folder)
    yield from quantised_tensors(headers)
    yield from _misfits(model, tensors, headers, same=lambda one, other: torch.equal(held[one], held[other]))
    begins = {name: tensor[:1] if tensor.dim() > 1 else tensor for name, tensor in held.items()}
    yield from _no_numbers(model, {name: partial(torch.Tensor.flatten, values) for name, values in begins.items()})


def _no_numbers(model: Any, looks: Mapping[str, Callable[[], torch.Tensor]]) -> Iterator[str]:
    """NaN or infinity at the begin of a weight, as a run that diverged leaves them: a row of each, as whole models take long to read; what
    stands elsewhere is told at the first sync.
    """
    saved = saved_buffers(model)
    names = [name for name in looks if name not in saved and not ignored_on_load(name, model)]
    lost = [name for name in names[:MOST_LOOKED_AT] if not _finite(looks[name]())]
    if lost:
        yield f"its weight files hold NaN or infinity in {_listed(lost)}: the run that wrote them diverged; give an earlier checkpoint"


def _finite(values: torch.Tensor) -> bool:
    return not values.is_floating_point() or bool(values.isfinite().all())


def _first_values(header: TensorHeader) -> torch.Tensor:
    """Of the first row, or of all of a vector."""
    dtype = DTYPES.get(header.dtype)
    size = min(header.end - header.begin, ROW if dtype else 0)
    if not size or dtype is None:
        return torch.empty(0)
    with header.file.open("rb") as opened:
        opened.seek(header.begin)
        return torch.frombuffer(bytearray(opened.read(size)), dtype=dtype)


def _misfits(
    model: Any, tensors: Mapping[str, torch.Tensor], headers: Mapping[str, TensorHeader], *, same: Callable[[str, str], bool]
) -> Iterator[str]:
    """Whole numbers in place of others, tensors of another shape, missing ones, ones without a place, a head that differs from what it is
    tied to.
    """
    modules: Shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    pieces = _under_file_names(model, modules)
    ties = tied_names(model)
    known = modules | {piece: shape for shapes in pieces.values() for piece, shape in shapes.items()}
    known |= {other: modules[name] for name, names in ties.items() for other in names}
    places = {name: _place(name, model, known) for name in headers}
    counting = {name for name, tensor in tensors.items() if not tensor.is_floating_point()}
    for name, header in headers.items():
        if header.dtype not in FLOATS and places[name] not in counting and not ignored_on_load(name, model):
            yield quantised_tensor(name, header)
    wrong = [(name, known[place]) for name, place in places.items() if place in known and headers[name].shape != known[place]]
    if wrong:
        name, shape = wrong[0]
        more = f" ({len(wrong)} tensors differ)" if len(wrong) > 1 else ""
        found = f"{name} is {list(headers[name].shape)} in the files, and config.json asks for {list(shape)}"
        yield f"{found}{more}; the two are of different models"
    held = set(places.values())
    if CONVERTED not in held:
        lacking = [
            name for name in modules if not held & {name, *ties.get(name, ())} and not (pieces[name] and pieces[name].keys() <= held)
        ]
        if lacking:
            yield f"its weight files lack {_listed(lacking)}, which config.json asks for; give a complete folder"
    extra = [name for name, place in places.items() if place not in known and place != CONVERTED and not ignored_on_load(name, model)]
    if extra:
        yield (
            f"its weight files hold {_listed(extra)}, which {type(model).__name__} of this config.json does not have and would ignore; "
            "take them out, or correct config.json"
        )
    yield from _tied(ties, {place: name for name, place in places.items()}, same)


def _under_file_names(model: Any, modules: Shapes) -> dict[str, Shapes]:
    """For each name of the modules, those under which `save_pretrained` would write it instead (several where it stacks experts)."""
    from transformers.core_model_loading import revert_weight_conversion

    tensors = {name: torch.empty(shape, device="meta") for name, shape in modules.items()}
    if revert_weight_conversion(model, dict(tensors)).keys() == tensors.keys():
        return {name: {} for name in modules}
    return {
        name: {n: tuple(t.shape) for n, t in revert_weight_conversion(model, {name: tensor}).items() if n != name}
        for name, tensor in tensors.items()
    }


def _place(name: str, model: Any, known: Mapping[str, Any]) -> str:
    """What a tensor of a file is called in the model, where transformers renames it on loading (old names, a prefix more or less);
    CONVERTED where it becomes something else altogether.
    """
    if name in known:
        return name
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters: Any = [rule for rule in rules if not isinstance(rule, WeightRenaming)]
    renamed, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, dict(known))
    return renamed if converter is None else CONVERTED


def _tied(ties: Mapping[str, tuple[str, ...]], held: Mapping[str, str], same: Callable[[str, str], bool]) -> Iterator[str]:
    """`held`: the name in the files of what has a place in the model."""
    for names in ties.values():
        stored = [name for name in names if name in held]
        for other in stored[1:]:
            if not same(held[stored[0]], held[other]):
                yield (
                    f"config.json ties {other} to {stored[0]} (tie_word_embeddings), and the files hold other values for it; "
                    "set tie_word_embeddings to false in config.json, or take the tensor out"
                )


def _same_bytes(one: TensorHeader, other: TensorHeader) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.begin)
        second.seek(other.begin)
        left = one.end - one.begin
        while left > 0:
            size = min(left, COMPARED)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _words(error: BaseException, *, limit: int = 240) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
