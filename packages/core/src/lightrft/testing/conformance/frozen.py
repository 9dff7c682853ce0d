"""Requirements of frozen models: frozen, whole to the caller, and sharded over as many ranks as asked."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.bench import StrategyBench
from lightrft.testing.conformance.plain import FROZEN, NAMES, STEPS
from lightrft.testing.conformance.requirement import check
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train
from lightrft.weights.safetensors_reader import WeightFiles


@check("prepare_model", after=FROZEN)
def a_frozen_model_has_no_gradients(bench: StrategyBench) -> None:
    """Eval mode, no parameter requires gradients, and neither does an output"""
    model = bench.strategy.prepare_model(tiny_causal_lm().train())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not trained, f"a frozen model has parameters that require gradients: {', '.join(trained[:3])} ({len(trained)} in all)"
    assert not any(module.training for module in model.modules()), "a frozen model is in training mode: its dropout would be on"
    logits = model(input_ids=_ids(bench)).logits
    assert not logits.requires_grad, "the output of a frozen model requires gradients"


@check("prepare_model", after=FROZEN)
def a_frozen_model_gives_the_outputs_of_the_whole(bench: StrategyBench) -> None:
    """Each rank's own input, through the model as prepared, gives what the plain model gives"""
    far = _distance(bench, bench.strategy.prepare_model(tiny_causal_lm()), times=1)
    assert far < 1e-4, f"logits of a frozen model differ by {far:.1e} from those of the plain model"


@check("prepare_model", after=FROZEN)
def shard_size_divides_the_world(bench: StrategyBench) -> None:
    """A `shard_size` that does not divide the number of ranks is a ValueError with both numbers"""
    bad = bench.world_size + 1
    try:
        bench.strategy.prepare_model(tiny_causal_lm(), shard_size=bad)
    except ValueError as error:
        assert str(bad) in str(error) and str(bench.world_size) in str(error), f"shard_size={bad} is refused with {str(error)!r}"
        return
    raise AssertionError(f"shard_size={bad} was accepted in a world of {bench.world_size}, which it does not divide")


@check("prepare_model", needs=Capability.SHARDED_FROZEN, after=FROZEN)
def neighbouring_ranks_share_one_copy(bench: StrategyBench) -> None:
    """With `shard_size` N a rank holds one N-th, groups do not wait for each other, and outputs are those of the whole model"""
    whole = sum(p.numel() for p in tiny_causal_lm().parameters())
    for size in (n for n in (1, 2, 4) if bench.world_size % n == 0):
        model = bench.strategy.prepare_model(tiny_causal_lm(), shard_size=size)
        fraction = sum(_held(p) for p in model.parameters()) / whole
        far = _distance(bench, model, times=1 + 2 * (bench.rank // size))
        assert abs(fraction - 1 / size) < 0.1 / size, (
            f"shard_size={size} is not honoured: a rank holds {fraction:.2f} of the parameters, expected 1/{size} = {1 / size:.2f}"
        )
        assert far < 1e-4, f"logits of a model with shard_size={size} differ by {far:.1e} from those of the plain model"


@check("prepare_model", after=(*FROZEN, *NAMES))
def models_are_filled_from_weight_files(bench: StrategyBench) -> None:
    """A model on the meta device gets the values of the files, frozen or trained, every one of them, and computes what the model does"""
    folder = bench.folder / "filled"
    source = tiny_causal_lm(seed=4, tie=True)
    expected = {name: p.detach() for name, p in source.named_parameters()}
    if bench.rank == 0:
        source.save_pretrained(folder)
    bench.strategy.all_reduce(0.0)
    for what in ("frozen", "trained"):
        model = _empty(folder)
        if what == "frozen":
            prepared = bench.strategy.prepare_model(model, weights=WeightFiles(folder))
        else:
            prepared, _ = bench.strategy.prepare_trainable(model, optimizer=SETTINGS, weights=WeightFiles(folder))
        far = largest_difference(full_parameters(bench.strategy, prepared), expected)
        assert far == 0, f"a {what} model made on the meta device does not hold the values of its files: they differ by {far}"
        with torch.no_grad():
            logits = prepared(input_ids=_ids(bench)).logits.float().cpu()
            off = float((logits - source.train(False)(input_ids=_ids(bench).cpu()).logits).abs().max())
        assert off < 1e-4, f"a {what} model filled from files has its parameters, and logits {off:.1e} off: its buffers are not the model's"


@check("prepare_model", after=(*FROZEN, *STEPS, *NAMES, "models_are_filled_from_weight_files"))
def a_frozen_model_stays_while_another_trains(bench: StrategyBench) -> None:
    """Steps of an actor move nothing of a reference that was made from the same files"""
    folder = bench.folder / "reference"
    if bench.rank == 0:
        tiny_causal_lm(seed=5).save_pretrained(folder)
    bench.strategy.all_reduce(0.0)
    reference = bench.strategy.prepare_model(_empty(folder), weights=WeightFiles(folder))
    actor, optimizer = bench.strategy.prepare_trainable(_empty(folder), optimizer=SETTINGS, weights=WeightFiles(folder))
    before = full_parameters(bench.strategy, reference)
    train(bench.strategy, actor, optimizer, last=2)
    far = largest_difference(full_parameters(bench.strategy, reference), before)
    assert far == 0, f"while an actor trained, a frozen model of the same files moved by {far:.1e}: the two share memory"


@check("on_device", needs=Capability.FROZEN_OFFLOAD, after=(*FROZEN, *NAMES))
def a_frozen_model_rests_between_its_passes(bench: StrategyBench) -> None:
    """`offload_frozen`: parameters lie in host memory, but on the device, once copied, in a block of `on_device`; the same bits come out"""
    strategy = bench.start(offload_frozen=True)
    model, always = strategy.prepare_model(tiny_causal_lm()), bench.strategy.prepare_model(tiny_causal_lm())
    ids, device = _ids(bench), strategy.world.device.type
    with torch.no_grad():
        expected = always(input_ids=ids).logits
        found = [model(input_ids=ids).logits]  # a pass by itself
        resting = _places(model)
        with strategy.on_device(model):
            working = _places(model)
            found += [model(input_ids=ids).logits for _ in range(2)]
            between = _places(model)
        after = _places(model)
    assert {kind for kind, _ in (*resting, *after)} == {"cpu"}, "a resting model has parameters that are not in host memory"
    assert {kind for kind, _ in working} == {device}, f"in a block of on_device, parameters of a frozen model are not on {device}"
    assert not {*resting} & {*working}, "parameters of a resting model did not move: the capability is declared and absent"
    assert between == working, "parameters came and went between two passes of one block of on_device"
    assert all(torch.equal(logits, expected) for logits in found), "logits of a model that rests differ from those of one that does not"
    far = largest_difference(full_parameters(strategy, model), full_parameters(bench.strategy, always))
    assert far == 0, f"parameters of a model that rests leave {far:.1e} off"


@check("unwrap", after=(*STEPS, *FROZEN))
def unwrap_gives_the_model_of_transformers(bench: StrategyBench) -> None:
    """The model inside, with its `config`, for frozen and trained models"""
    plain = tiny_causal_lm()
    trained, _ = bench.strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    for model in (trained, bench.strategy.prepare_model(tiny_causal_lm())):
        inner = bench.strategy.unwrap(model)
        assert isinstance(inner, type(plain)), f"unwrap gives a {type(inner).__name__}, prepared was a {type(plain).__name__}"
        assert inner.config.hidden_size == plain.config.hidden_size, "unwrap gives a model with another configuration"


def _ids(bench: StrategyBench) -> torch.Tensor:
    generator = torch.Generator().manual_seed(bench.rank)
    return torch.randint(0, 64, (2, 17), generator=generator).to(bench.strategy.world.device)


def _distance(bench: StrategyBench, model: torch.nn.Module, *, times: int) -> float:
    ids = _ids(bench)
    with torch.no_grad():
        expected = tiny_causal_lm().train(False)(input_ids=ids.cpu()).logits
        found = [model(input_ids=ids).logits.float().cpu() for _ in range(times)]
    return max(float((logits - expected).abs().max()) for logits in found)


def _places(model: torch.nn.Module) -> list[tuple[str, int]]:
    """Device and address of each parameter's elements on this rank, where there are any."""
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [(t.device.type, t.data_ptr()) for t in local if t.numel()]


def _held(parameter: torch.nn.Parameter) -> int:
    return parameter.to_local().numel() if isinstance(parameter, DTensor) else parameter.numel()


def _empty(folder: Path) -> torch.nn.Module:
    from lightrft.models.load import open_causal_lm

    return open_causal_lm(folder, dtype=torch.float32).model
