"""Requirements of exports: every weight once, bit by bit, under the HF model's names, in bounded buckets; averages follow."""

from __future__ import annotations

import torch

from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing.conformance.bench import StrategyBench, Tensors
from lightrft.testing.conformance.plain import FROZEN, NAMES, STEPS, VALUES
from lightrft.testing.conformance.requirement import check
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train
from lightrft.weights.buckets import tied_names

VOCABULARY = 61
"""Divisible by no number of ranks: padding has to be cut off again."""

BOUND = 30_000
"""Bytes, small against the model and large against most of its tensors."""


def _trainable(strategy: StrategyBase, *, tie: bool = False) -> tuple[torch.nn.Module, Tensors, list[tuple[str, ...]]]:
    """A prepared model, its values and all names of each parameter from before."""
    source = tiny_causal_lm(vocab_size=VOCABULARY, tie=tie)
    values = {name: p.detach().clone() for name, p in source.named_parameters()}
    names = list(tied_names(source).values())
    return strategy.prepare_trainable(source, optimizer=SETTINGS)[0], values, names


def _cast(strategy: StrategyBase, model: torch.nn.Module) -> Tensors:
    """Every parameter as bfloat16, on the CPU."""
    buckets = strategy.export_weights(model, dtype=torch.bfloat16)
    return {weight.names[0]: weight.tensor.detach().cpu().clone() for bucket in buckets for weight in bucket}


@check("export_weights", after=NAMES)
def every_parameter_leaves_once_and_bitwise(bench: StrategyBench) -> None:
    """Full tensors under the names of the HF model, in its order, with the values that were prepared; twice in a row"""
    model, expected, names = _trainable(bench.strategy)
    for time in ("first", "second"):
        found = [(w.names[0], w.tensor.detach().cpu().clone()) for bucket in bench.strategy.export_weights(model) for w in bucket]
        left = [name for name, _ in found]
        missing, more = [n[0] for n in names if n[0] not in left], [n for n in left if n not in expected]
        assert not missing, f"the {time} export lacks {', '.join(missing[:3])} ({len(missing)} in all)"
        assert not more, f"the {time} export has {', '.join(more[:3])}, which the model does not have ({len(more)} in all)"
        twice = sorted({n for n in left if left.count(n) > 1})
        assert not twice, f"exported more than once: {twice[:3]}"
        assert left == [n[0] for n in names], "parameters leave in another order than `named_parameters` of the HF model has"
        wrong = [n for n, t in found if t.shape != expected[n].shape or not torch.equal(t, expected[n])]
        assert not wrong, f"the {time} export of {', '.join(wrong[:3])} is not bitwise what was prepared ({len(wrong)} tensors)"


@check("export_weights", after=NAMES)
def tied_weights_leave_once_with_all_their_names(bench: StrategyBench) -> None:
    """A parameter that the model holds under several names leaves as one tensor that has them all"""
    model, _, names = _trainable(bench.strategy, tie=True)
    found = [w.names for bucket in bench.strategy.export_weights(model) for w in bucket]
    tied = next(n for n in names if len(n) > 1)
    lacking = [n for n in tied if n not in {name for known in found for name in known}]
    assert not lacking, (
        f"{' and '.join(tied)} are one parameter, and the export lacks the name {', '.join(lacking)}: an engine would keep its old values"
    )
    assert [set(n) for n in found] == [set(n) for n in names], (
        f"tied names {tied} are exported as {[n for n in found if set(n) & set(tied)]}"
    )


@check("export_weights", after=VALUES)
def weights_leave_in_the_dtype_asked_for(bench: StrategyBench) -> None:
    """`dtype` casts every tensor, rounded from the values that are trained; None keeps their own"""
    model, expected, _ = _trainable(bench.strategy)
    for dtype in (torch.bfloat16, None):
        for bucket in bench.strategy.export_weights(model, dtype=dtype):
            for weight in bucket:
                wanted = expected[weight.names[0]].to(dtype or torch.float32)
                assert weight.tensor.dtype is wanted.dtype, f"{weight.names[0]} left as {weight.tensor.dtype}, asked was dtype={dtype}"
                assert torch.equal(weight.tensor.cpu(), wanted), f"{weight.names[0]} as {wanted.dtype} is not the rounded value"
                assert not weight.tensor.requires_grad, f"{weight.names[0]} leaves with its gradient graph"


@check("export_weights", after=NAMES)
def buckets_keep_their_bound(bench: StrategyBench) -> None:
    """No bucket holds more bytes than asked for, but one that holds a single larger tensor; none is closed early"""
    model, _, _ = _trainable(bench.strategy)
    for dtype in (None, torch.bfloat16):
        buckets = bench.strategy._export_weights(model, dtype, BOUND)
        sizes = [[w.tensor.numel() * w.tensor.element_size() for w in bucket] for bucket in buckets]
        over = [sum(bucket) for bucket in sizes if sum(bucket) > BOUND and len(bucket) > 1]
        assert not over, f"a bucket of {max(over)} bytes; the bound is {BOUND} (weight_bucket_mb is what a GPU has to spare)"
        assert all(sizes), "an empty bucket"
        early = [i for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)) if sum(a) + b[0] <= BOUND]
        assert not early, (
            f"bucket {early[:1]} of {len(sizes)} was closed although the next tensor had room: every bucket costs a collective"
        )


@check("export_weights", after=NAMES)
def trained_weights_leave_after_a_step(bench: StrategyBench) -> None:
    """What leaves is what was stepped, the same on every rank, cast or not"""
    model, optimizer = bench.strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    before, _ = full_parameters(bench.strategy, model), _cast(bench.strategy, model)
    train(bench.strategy, model, optimizer, last=1)
    after, cast = full_parameters(bench.strategy, model), _cast(bench.strategy, model)
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still, f"a step did not reach the export of {', '.join(still[:3])}"
    old = [name for name, value in after.items() if not torch.equal(cast[name], value.bfloat16())]
    assert not old, f"as bfloat16 {', '.join(old[:3])} leave with other values than as float32: those of before the step?"
    totals = {name: value.double().sum().item() for name, value in after.items()}
    low, high = bench.strategy.all_reduce(totals, "min"), bench.strategy.all_reduce(totals, "max")
    different = [name for name in totals if low[name] != high[name]]
    assert not different, f"ranks export different values of {', '.join(different[:3])}"


@check("export_weights", after=(*FROZEN, *STEPS))
def saved_buffers_leave_as_they_are(bench: StrategyBench) -> None:
    """A buffer of the state dict leaves with its bits in its own dtype, whatever parameters are cast to: of a trained model and a frozen"""
    name, values = "model.scale", torch.tensor([1.0 + 2**-20, -(2.0**-30), 3.0])
    for what in ("trained", "frozen"):
        model: torch.nn.Module = tiny_causal_lm()
        model.get_submodule("model").register_buffer("scale", values.clone())
        if what == "trained":
            model, optimizer = bench.strategy.prepare_trainable(model, optimizer=SETTINGS)
            train(bench.strategy, model, optimizer, last=1)
        else:
            model = bench.strategy.prepare_model(model)
        for dtype in (None, torch.bfloat16):
            found = [w for bucket in bench.strategy.export_weights(model, dtype=dtype) for w in bucket if name in w.names]
            assert len(found) == 1 and found[0].is_buffer, f"the saved buffer {name} of a {what} model leaves {len(found)} times, not once"
            left = found[0].tensor.cpu()
            same = left.dtype is values.dtype and torch.equal(left, values)
            assert same, f"the saved buffer {name} of a {what} model leaves as {left.dtype} {left.tolist()}, it is {values.tolist()}"


@check("export_weights", after=(*FROZEN, *NAMES))
def frozen_models_leave_whole_too(bench: StrategyBench) -> None:
    """A model of `prepare_model` exports its values, also where ranks share it"""
    source = tiny_causal_lm(vocab_size=VOCABULARY)
    expected = {name: p.detach().clone() for name, p in source.named_parameters()}
    far = largest_difference(full_parameters(bench.strategy, bench.strategy.prepare_model(source)), expected)
    assert far == 0, f"the export of a frozen model differs by {far} from what was prepared"


@check("move_ema_model", after=VALUES)
def a_moving_average_follows_what_leaves(bench: StrategyBench) -> None:
    """After two steps it is beta (beta w0 + (1 - beta) w1) + (1 - beta) w2 of the weights that left, in float32, identical on every rank"""
    beta, strategy = 0.75, bench.strategy
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    ema = strategy.prepare_ema_model(tiny_causal_lm())
    expected = full_parameters(strategy, ema)
    for step in (1, 2):
        train(strategy, model, optimizer, first=step, last=step + 1)
        strategy.move_ema_model(ema, model, beta=beta)
        expected = {name: beta * expected[name] + (1 - beta) * value for name, value in full_parameters(strategy, model).items()}
    far = largest_difference(full_parameters(strategy, ema), expected)
    assert far <= 1e-6, f"the average differs by {far} from {beta} of itself and {1 - beta} of the exported weights after each step"


@check("save_ema_model", after=VALUES)
def a_moving_average_comes_back_bit_by_bit(bench: StrategyBench) -> None:
    """What `save_ema_model` wrote, `load_ema_model` gives another average, on every rank the part that it holds"""
    saved = bench.strategy.prepare_ema_model(tiny_causal_lm(vocab_size=VOCABULARY, seed=3))
    other = bench.strategy.prepare_ema_model(tiny_causal_lm(vocab_size=VOCABULARY, seed=4))
    bench.strategy.save_ema_model(bench.folder / "average", saved)
    bench.strategy.load_ema_model(bench.folder / "average", other)
    far = largest_difference(full_parameters(bench.strategy, other), full_parameters(bench.strategy, saved))
    assert far == 0, f"a restored average differs by {far} from the one that was saved"
