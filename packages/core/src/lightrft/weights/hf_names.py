"""The names under which a model's folder holds tensors that its modules call otherwise: engines read by them, and folders are saved so."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import AutoConfig

from lightrft.weights.buckets import Weight, WeightBucket, saved_buffers
from lightrft.weights.experts import ExpertFiles, expert_files, is_stack
from lightrft.weights.model_class import ignored_on_load, language_model_class


class FileNames:
    """Turns weights under module names into weights under file names, such as experts that transformers stacks and files hold one by one.

    transformers' own conversion, the one of `save_pretrained`; a tensor whose name the folder knows passes as it is.
    """

    def __init__(self, model_path: str, known: Iterable[str], *, trust_remote_code: bool = False) -> None:
        self._model_path = model_path
        self._known = frozenset(known)
        self._trust_remote_code = trust_remote_code
        self._model: Any = None

    def convert(self, bucket: WeightBucket) -> WeightBucket:
        """The same values; views of the tensors where they are split."""
        return [converted for weight in bucket for converted in self._convert(weight)]

    def module_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and full shapes of the modules' parameters, a tied one once, and saved buffers: what `convert` takes."""
        model = self.model()
        return {name: tuple(tensor.shape) for name, tensor in (dict(model.named_parameters()) | saved_buffers(model)).items()}

    def one_to_one(self) -> dict[str, str]:
        """Name of a weight to its name in the folder, for each that lies there whole: not those that files hold in several parts."""
        shapes = self.module_shapes()
        found = {name: self._in_files(name, shape) for name, shape in shapes.items()}
        return {n: made[0].names[0] for n, made in found.items() if len(made) == 1 and tuple(made[0].tensor.shape) == shapes[n]}

    def stacks(self) -> dict[str, ExpertFiles]:
        """Name of each weight that is stacked experts to what the folder has of each expert; not those that lie there in another way."""
        shapes = {name: shape for name, shape in self.module_shapes().items() if is_stack(name, len(shape))}
        made = {name: {w.names[0]: tuple(w.tensor.shape) for w in self._in_files(name, shape)} for name, shape in shapes.items()}
        found = {name: expert_files(shapes[name], files) for name, files in made.items()}
        return {name: files for name, files in found.items() if files is not None}

    def needed(self) -> frozenset[str]:
        """The folder's names but those that loading is known to ignore, such as rotary tables of older versions: nobody sends these."""
        model = self.model() if self._known else None
        return frozenset(name for name in self._known if not ignored_on_load(name, model))

    def _in_files(self, name: str, shape: tuple[int, ...]) -> WeightBucket:
        """What becomes of a weight, without values."""
        return self.convert([Weight((name,), torch.empty(shape, device="meta"))])

    def _convert(self, weight: Weight) -> Iterator[Weight]:
        if not self._known or any(name in self._known for name in weight.names):
            yield weight
            return
        prefix = f"{self.model().base_model_prefix}."
        bare = tuple(name.removeprefix(prefix) for name in weight.names)
        if any(name in self._known for name in bare):  # a folder of the model without its head, such as GPT-2's on the hub
            yield Weight(bare, weight.tensor, is_buffer=weight.is_buffer)
            return
        # What transformers calls private may move; tests/test_file_names.py fails then. 5.12 to 5.19 have it here.
        from transformers.core_model_loading import revert_weight_conversion

        each = [list(revert_weight_conversion(self.model(), {name: weight.tensor}).items()) for name in weight.names]
        for same in zip(*each, strict=True):
            yield Weight(tuple(name for name, _ in same), same[0][1], is_buffer=weight.is_buffer)

    def model(self) -> Any:
        """The folder's model without values, on the meta device."""
        if self._model is None:
            config = AutoConfig.from_pretrained(self._model_path, trust_remote_code=self._trust_remote_code)
            with torch.device("meta"):
                self._model = language_model_class(config).from_config(config, trust_remote_code=self._trust_remote_code)
        return self._model


def under_file_names(state: dict[str, torch.Tensor], model: Any, model_class: Any) -> dict[str, torch.Tensor]:
    """The state dict as `save_pretrained` of that class writes it; the same values, views of the tensors where they are divided.

    A twin without values stands for `model`, whose class and modules a strategy or peft may have wrapped.
    """
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        twin = model_class(copy.deepcopy(model.config))
    if hasattr(model, "_weight_conversions"):  # those that were used when it was loaded
        twin._weight_conversions = model._weight_conversions
    converted: dict[str, torch.Tensor] = revert_weight_conversion(twin, state)
    return converted
