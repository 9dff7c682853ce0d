"""Training state that another number of ranks can read: sharded tensors by DCP (with our own index), the rest by rank 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from lightrft.errors import CheckpointError
from lightrft_fsdp.dcp_files import JsonIndexReader, JsonIndexWriter, read_tensors

Optimizer = torch.optim.Optimizer

MODEL, OPTIMIZER = "model/", "optimizer/"
GROUPS = "groups.pt"


def save(folder: Path, model: torch.nn.Module, optimizer: Optimizer, *, is_rank_0: bool) -> None:
    """Collective. Only tensors go to DCP, which pickles anything else."""
    moments = {
        f"{OPTIMIZER}{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in sorted(optimizer.state.get(parameter, {}).items())  # as after a load: the same state is the same bytes
    }
    _guarded(lambda: state_dict_saver.save(_model_state(model) | moments, storage_writer=JsonIndexWriter(folder)))
    if is_rank_0:
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        torch.save(groups, folder / GROUPS)


def load(folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Collective. The model's parameters are overwritten in place; the optimizer's state is made anew, as it was saved."""
    parameters = dict(model.named_parameters())
    _check_dtypes(folder, parameters)
    moments: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
    wanted: dict[str, torch.Tensor] = _model_state(model)
    for path, about in read_tensors(folder).items():
        if not path.startswith(OPTIMIZER):
            continue
        key, name = path.removeprefix(OPTIMIZER).split("/", 1)
        parameter = parameters[name]
        same_shape = about.size == parameter.shape
        dtype = about.properties.dtype  # not the parameter's, which may be held in less
        value = torch.zeros_like(parameter, dtype=dtype) if same_shape else torch.zeros(about.size, dtype=dtype)
        wanted[path] = moments.setdefault(parameter, {})[key] = value.detach()
    _guarded(lambda: state_dict_loader.load(wanted, storage_reader=JsonIndexReader(folder)))
    optimizer.state.clear()
    optimizer.state.update(moments)
    groups = torch.load(folder / GROUPS, weights_only=True, map_location="cpu")
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update(saved)


def _check_dtypes(folder: Path, parameters: Mapping[str, torch.Tensor]) -> None:
    """Values that were rounded are no masters, and masters that nobody steps on would be lost."""
    tensors = read_tensors(folder)
    for name, parameter in parameters.items():
        saved = tensors[f"{MODEL}{name}"].properties.dtype
        if saved is not parameter.dtype:
            how = {torch.bfloat16: "with", torch.float32: "without"}
            raise CheckpointError(
                f"{str(folder)!r} was saved {how[saved]} use_mp_opt ({name} is {saved}), this run is {how[parameter.dtype]} it "
                f"({parameter.dtype}); set use_mp_opt as it was"
            )


def _model_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, a tied one once, and the buffers that the model saves; they share memory with the model."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {f"{MODEL}{name}": tensor for name, tensor in (parameters | buffers).items()}


def _guarded(work: Callable[[], object]) -> None:
    try:
        work()
    except CheckpointException as error:  # of all ranks, and no Exception
        first = min(error.failures)
        cause = error.failures[first][0]
        if isinstance(cause, (OSError, RuntimeError)):  # what the device refused: told as any save that failed
            raise cause from error
        raise CheckpointError(f"rank {first}: {type(cause).__name__}: {cause}") from error
