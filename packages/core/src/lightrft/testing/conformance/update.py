"""Requirements of a step: it is the step of one process with one batch. By hand on a line, and against the oracle on a small model."""

from __future__ import annotations

import importlib.util
import math

import torch

from lightrft.errors import StrategyStateError
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.conformance.bench import POINTS, StrategyBench, close, line_gradient
from lightrft.testing.conformance.plain import NAMES, STEPS, VALUES
from lightrft.testing.conformance.requirement import NotAsked, check
from lightrft.testing.parity import BOUND, CASES, GRADIENT_STEP, Distance, Measured, distance
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, accumulate, full_parameters, largest_difference, loss_sum, ragged_rows, train

PLAIN_STEP = AdamWSettings(learning_rate=0.125, betas=(0.0, 0.0), eps=0.0)
"""AdamW moves by the learning rate, whatever the gradient."""

PARITY = {case.name: case for case in CASES}

LOSS_SHARES = ("loss_shares_are_summed_over_ranks",)
ACCUMULATION = ("loss_shares_are_summed_over_micro_batches",)
UPDATES = ("an_update_is_that_of_one_process", "micro_batches_do_not_change_the_update")


@check("backward", after=NAMES)
def loss_shares_are_summed_over_ranks(bench: StrategyBench) -> None:
    """The gradient is the sum of all ranks' loss shares: no mean over ranks, and no mean of the ranks' means"""
    line = bench.line(GRADIENT_STEP)
    line.backward()
    bench.strategy.optimizer_step(line.optimizer, line.model, None, "line", max_norm=0.0)
    expected, world, found = line_gradient(2.0), bench.world_size, line.stepped_with
    mean = f"{expected / world:.4f} would be a mean over {world} ranks: " if world > 1 else ""
    assert close(found, expected, rel=1e-4), (
        f"the gradient of a token on the first rank and two on the last is {found:.4f}; by hand (1 + 6 + 6) / 3 = {expected:.4f}. "
        f"{mean}loss shares are summed, each is already divided by the global count"
    )


@check("backward", after=("loss_shares_are_summed_over_ranks",))
def loss_shares_are_summed_over_micro_batches(bench: StrategyBench) -> None:
    """The gradient is the sum over micro-batches: no division by the number of accumulation steps"""
    line = bench.line(GRADIENT_STEP)
    line.backward_in_two()
    bench.strategy.optimizer_step(line.optimizer, line.model, None, "line", max_norm=0.0)
    expected, found = line_gradient(2.0), line.stepped_with
    assert close(found, expected, rel=1e-4), (
        f"one token in the first micro-batch and two in the second give a gradient of {found:.4f}; by hand (1 + 6 + 6) / 3 = "
        f"{expected:.4f}. {expected / 2:.4f} would be divided by the accumulation steps a second time, 4.0000 the last micro-batch alone"
    )


@check("backward", after=STEPS)
def backward_takes_a_scalar(bench: StrategyBench) -> None:
    """A loss that is not a scalar is a ValueError that shows its shape"""
    line = bench.line(SETTINGS)
    try:
        bench.strategy.backward(torch.ones(3, requires_grad=True), line.model, line.optimizer)
    except ValueError as error:
        assert "(3,)" in str(error), f"backward of a loss of shape (3,) says {str(error)!r}, which does not show the shape"
        return
    raise AssertionError(
        "backward of a loss of shape (3,) was accepted; a scalar is this rank's loss share, anything else has to be a ValueError"
    )


@check("prepare_trainable", after=LOSS_SHARES)
def the_optimizer_is_adamw_with_the_settings_asked_for(bench: StrategyBench) -> None:
    """Learning rate, betas, eps and decoupled weight decay reach the optimizer"""
    settings = AdamWSettings(learning_rate=0.1, betas=(0.5, 0.75), eps=0.25, weight_decay=0.5)
    line = bench.line(settings)
    weight, mean, square = 2.0, 0.0, 0.0
    for step in (1, 2):
        gradient = line_gradient(weight)
        mean, square = 0.5 * mean + 0.5 * gradient, 0.75 * square + 0.25 * gradient**2
        weight -= 0.1 * 0.5 * weight
        weight -= 0.1 * (mean / (1 - 0.5**step)) / (math.sqrt(square / (1 - 0.75**step)) + 0.25)
        line.backward()
        bench.strategy.optimizer_step(line.optimizer, line.model, None, "line", max_norm=0.0)
        found = line.weight
        assert close(found, weight), f"after step {step} of {settings} the weight is {found:.6f}, by hand {weight:.6f}"


@check("prepare_trainable", after=STEPS)
def a_trained_model_is_in_eval_mode(bench: StrategyBench) -> None:
    """Dropout is off: the policy that is updated has to be the one that sampled"""
    model, optimizer = bench.strategy.prepare_trainable(tiny_causal_lm().train(), optimizer=SETTINGS)
    inner = bench.strategy.unwrap(model)
    for when in ("prepare_trainable", "a step and an export"):
        training = [name or "the model" for name, module in inner.named_modules() if module.training]
        assert not training, f"in training mode after {when}, so that dropout would be on: {', '.join(training[:3])}"
        train(bench.strategy, model, optimizer, last=1)
        full_parameters(bench.strategy, model)


@check("prepare_trainable", after=NAMES)
def only_what_requires_gradients_is_trained(bench: StrategyBench) -> None:
    """Parameters that require no gradients stay as they are; a model without trained ones is a ValueError"""
    model: torch.nn.Module = tiny_causal_lm()
    name = "model.embed_tokens.weight"
    model.get_parameter(name).requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model, optimizer = bench.strategy.prepare_trainable(model, optimizer=SETTINGS)
    train(bench.strategy, model, optimizer, last=1)
    after = full_parameters(bench.strategy, model)
    assert torch.equal(after[name], before[name]), f"{name} requires no gradient and was changed by a step"
    still = [n for n, value in before.items() if n != name and torch.equal(after[n], value)]
    assert not still, f"trained and unchanged after a step: {', '.join(still[:3])}"
    try:
        bench.strategy.prepare_trainable(tiny_causal_lm().requires_grad_(False), optimizer=SETTINGS)
    except ValueError as error:
        assert "requires gradients" in str(error), f"a model without trained parameters is refused with {str(error)!r}"
        return
    raise AssertionError("prepare_trainable took a model of which no parameter requires gradients")


@check("optimizer_step", after=LOSS_SHARES)
def max_norm_clips_0_is_off_and_none_is_the_configurations(bench: StrategyBench) -> None:
    """`max_norm` bounds the gradient that is stepped with; the reported norm is the one before"""
    expected = line_gradient(2.0)
    for max_norm, kept, asked in ((0.0, expected, None), (2 * expected, expected, None), (1.75, 1.75, None), (None, 0.5, 0.5)):
        line = bench.line(GRADIENT_STEP, strategy=bench.start(max_norm=asked) if asked else None)
        line.backward()
        result = line.strategy.optimizer_step(line.optimizer, line.model, None, "line", max_norm=max_norm)
        moved, configured = line.stepped_with, f" and {asked} in the configuration" if asked else ""
        assert close(moved, kept, rel=1e-3), (
            f"max_norm={max_norm}{configured} stepped with a gradient of {moved:.4f}, expected {kept:.4f} (0 is off)"
        )
        assert close(result.grad_norm, expected, rel=1e-4), f"reported norm {result.grad_norm:.4f}; before clipping it is {expected:.4f}"
        plain = type(result.grad_norm) is float and type(result.skipped) is bool
        assert plain, f"a step reports {result}: a plain float and a plain bool, for a tensor holds on to its device"
    line = bench.line(GRADIENT_STEP)
    line.backward(1e6)
    result = line.strategy.optimizer_step(line.optimizer, line.model, None, "line", max_norm=1.75)
    moved = line.stepped_with
    assert not result.skipped and close(moved, 1.75, rel=1e-3), (
        f"a gradient of {1e6 * expected:.3g}, large and finite, stepped with {moved:.4f} (skipped: {result.skipped}); with max_norm=1.75 "
        "it is clipped like any other"
    )


@check("optimizer_step", after=NAMES)
def a_step_clears_the_gradients(bench: StrategyBench) -> None:
    """Nothing of one step is left in the next; a step whose gradient is 0 is a step"""
    line = bench.line(SETTINGS)
    line.backward()
    bench.strategy.optimizer_step(line.optimizer, line.model, None, "line")
    line.backward(0.0)
    before = line.weight
    result = bench.strategy.optimizer_step(line.optimizer, line.model, None, "line")
    norm = result.grad_norm
    assert norm == 0.0, f"a loss worth 0 after a step has a gradient norm of {norm}: gradients of the step before are left"
    stepped = not result.skipped and line.weight != before
    assert stepped, f"a step with a gradient of 0 was left out ({result}): AdamW's moments and weight decay go on without one"


@check("optimizer_step", after=LOSS_SHARES)
def a_schedule_reaches_the_optimizer(bench: StrategyBench) -> None:
    """torch's schedulers work on the optimizer that `prepare_trainable` returned; a step steps the one it is given"""
    line = bench.line(PLAIN_STEP)
    scheduler = torch.optim.lr_scheduler.LambdaLR(line.optimizer, lambda step: 1 / (1 + step))
    for step, expected in enumerate((2.0 - 0.125, 2.0 - 0.125 - 0.0625)):
        line.backward()
        bench.strategy.optimizer_step(line.optimizer, line.model, scheduler, "line", max_norm=0.0)
        found = line.weight
        assert close(found, expected), (
            f"learning rate 0.125 / {step + 1}: the weight is {found:.6f} after step {step + 1}, by hand {expected}"
        )


@check("optimizer_step", after=VALUES)
def a_norm_that_is_not_finite_skips_the_step_on_all_ranks(bench: StrategyBench) -> None:
    """NaN or Inf, on one rank alone: no rank steps, the scheduler waits, the step is counted, and training goes on as if it had not been"""
    for sick in (math.nan, math.inf):
        strategy = bench.start()
        model, optimizer = strategy.prepare_trainable(tiny_causal_lm(layers=1), optimizer=SETTINGS)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        train(strategy, model, optimizer, last=1, scheduler=scheduler)
        before, rate = full_parameters(strategy, model), scheduler.get_last_lr()
        strategy.backward(loss_sum(model, ragged_rows(9)[:2]) * (sick if bench.is_last else 1.0), model, optimizer)
        result = strategy.optimizer_step(optimizer, model, scheduler, "actor")
        moved = largest_difference(full_parameters(strategy, model), before)
        train(strategy, model, optimizer, first=1, last=2, scheduler=scheduler)
        after, skips = full_parameters(strategy, model), dict(strategy.skipped_steps)
        who = f"a gradient of {sick} on rank {bench.world_size - 1} alone"
        assert result.skipped, f"{who} was not skipped here (rank {bench.rank}): norm {result.grad_norm}, skipped {result.skipped}"
        assert moved == 0, f"{who} changed parameters by {moved} although the step was skipped"
        assert skips == {"actor": 1}, (
            f"{who} is counted as {skips}, expected {{'actor': 1}}; where more were skipped, gradients of the skipped step are left"
        )
        assert scheduler.last_epoch == 2, f"the scheduler moved with the skipped step: {scheduler.last_epoch} steps instead of 2 ({rate})"
        assert all(bool(t.isfinite().all()) for t in after.values()), f"{who}: the next step found what was left of it"
        # one healthy step after a skipped one, from the same start as a run that never saw it
        other, other_optimizer = strategy.prepare_trainable(tiny_causal_lm(layers=1), optimizer=SETTINGS)
        other_scheduler = torch.optim.lr_scheduler.LambdaLR(other_optimizer, lambda step: 1 / (1 + step))
        train(strategy, other, other_optimizer, last=2, scheduler=other_scheduler)
        far = largest_difference(full_parameters(strategy, other), after)
        assert far == 0, f"{who}: the run goes on differently from one that never saw it, parameters differ by {far}"


@check("optimizer_step", after=NAMES)
def a_forward_after_a_step_sees_the_new_weights(bench: StrategyBench) -> None:
    """No forward pass uses weights of before a step, whatever passes came between backward and step"""
    strategy = bench.strategy
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    accumulate(strategy, model, optimizer, 0)
    ids = torch.arange(20, device=strategy.world.device).reshape(1, 20)
    with torch.no_grad():
        old = model(input_ids=ids).logits
    strategy.optimizer_step(optimizer, model, None)
    plain = tiny_causal_lm(seed=1)
    plain.load_state_dict(full_parameters(strategy, model), strict=True)
    with torch.no_grad():
        new, expected = model(input_ids=ids).logits.cpu(), plain(input_ids=ids.cpu()).logits
    far = float((new - expected).abs().max())
    assert not torch.equal(old.cpu(), new), "a forward pass after a step gives the logits of before: it uses the old weights"
    assert far < 1e-4, f"a forward pass after a step is {far:.1e} from a plain model with the exported weights: it uses other weights"


@check("prepare_trainable", after=(*LOSS_SHARES, *VALUES))
def an_update_is_that_of_one_process(bench: StrategyBench) -> None:
    """Gradients of the first step, norms, and parameters after five steps, with rows of different lengths dealt unevenly to the ranks"""
    _compare(bench, "accumulation 1")


@check("accumulate", after=(*LOSS_SHARES, *ACCUMULATION, "an_update_is_that_of_one_process"))
def micro_batches_do_not_change_the_update(bench: StrategyBench) -> None:
    """Three micro-batches with different numbers of tokens give the update of one"""
    _compare(bench, "accumulation 3")


@check("accumulate", after=UPDATES)
def a_rank_without_micro_batches_takes_part(bench: StrategyBench) -> None:
    """A rank that has no rows in a step changes nothing and keeps no other rank waiting"""
    _compare(bench, "one rank empty")


@check("optimizer_step", after=(*UPDATES, "max_norm_clips_0_is_off_and_none_is_the_configurations"))
def a_clipped_update_is_that_of_one_process(bench: StrategyBench) -> None:
    """The norm is that of the whole gradient, over all ranks and parameters, and is clipped once"""
    _compare(bench, "clipping")


@check("prepare_trainable", after=(*UPDATES, "a_clipped_update_is_that_of_one_process"))
def tied_weights_are_one_parameter(bench: StrategyBench) -> None:
    """An embedding that is the output layer, too, gets the gradients of both, counts once in the norm, and stays one"""
    _compare(bench, "tied weights")


@check("optimizer_step", after=(*UPDATES, "a_clipped_update_is_that_of_one_process"))
def each_model_is_clipped_alone(bench: StrategyBench) -> None:
    """Two models that train side by side: each step clips and steps exactly the model it is given"""
    _compare(bench, "actor and critic")


@check("prepare_trainable", after=(*UPDATES, "a_clipped_update_is_that_of_one_process"))
def adapters_alone_are_trained(bench: StrategyBench) -> None:
    """A model with LoRA adapters: only they get gradients, and their update is that of one process"""
    if importlib.util.find_spec("peft") is None:
        raise NotAsked("peft is not installed: pip install 'lightrft[lora]'")
    _compare(bench, "LoRA")


@check("prepare_trainable", after=UPDATES)
def recomputed_activations_change_nothing(bench: StrategyBench) -> None:
    """`gradient_checkpointing` gives the same update"""
    compare(bench.measure(PARITY["accumulation 3"], gradient_checkpointing=True), bench.oracle["accumulation 3"], "with recomputation")


@check("accumulate", after=STEPS)
def accumulate_without_a_smallest_input_says_what_is_possible(bench: StrategyBench) -> None:
    """A model that is none of transformers' and a rank with fewer micro-batches: a ValueError that names the remedy"""
    line = bench.line(SETTINGS)
    try:
        bench.strategy.accumulate([], lambda points: line.loss_share(points), line.model, line.optimizer)
    except ValueError as error:
        assert "same number on every rank" in str(error), f"the message does not say what to do: {str(error)!r}"
        return
    raise AssertionError(f"accumulate of no micro-batch on a plain module was accepted; it has no input to fill up with ({POINTS[:0]})")


@check("optimizer_step", after=STEPS)
def a_step_before_the_final_micro_batch_is_refused(bench: StrategyBench) -> None:
    """A step after `backward(final=False)` would be one of gradients that are not reduced: a StrategyStateError that says so"""
    line = bench.line(GRADIENT_STEP)
    bench.strategy.backward(line.loss_share(POINTS if bench.is_last else ()), line.model, line.optimizer, final=False)
    try:
        bench.strategy.optimizer_step(line.optimizer, line.model, None, "line", max_norm=0.0)
    except StrategyStateError as error:
        assert "final=True" in str(error), f"the refusal does not say what to pass: {str(error)!r}"
        return
    raise AssertionError("a step before the final micro-batch was taken: gradients that are not reduced are this rank's alone")


def _compare(bench: StrategyBench, case: str) -> None:
    compare(bench.measure(PARITY[case]), bench.oracle[case], case)


def compare(found: Measured, expected: Measured, what: str, bound: Distance = BOUND) -> None:
    """Raises AssertionError with the three distances from the oracle where one is beyond its bound."""
    assert found.parameters.keys() == expected.parameters.keys(), (
        f"{what}: other parameters than one process has: {sorted(found.parameters.keys() ^ expected.parameters.keys())[:3]}"
    )
    far = distance(found, expected)
    assert far.within(bound), (
        f"{what}: the update is not that of one process. Gradients of the first step differ by {far.gradients:.1e} (allowed "
        f"{bound.gradients:.0e}), gradient norms by {far.norms:.1e} ({bound.norms:.0e}), parameters after five steps by "
        f"{far.parameters:.1e} ({bound.parameters:.0e}); norms found {[round(n, 4) for n in found.norms[:4]]}, expected "
        f"{[round(n, 4) for n in expected.norms[:4]]}"
    )
