"""Requirements of saving: a resumed run is the same run, nothing saved is lost, and what cannot be loaded is refused on all ranks."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from lightrft.errors import CheckpointError, PeerError
from lightrft.strategy.strategy_base import Optimizer
from lightrft.testing.conformance.bench import StrategyBench, Tensors
from lightrft.testing.conformance.plain import NAMES, STEPS
from lightrft.testing.conformance.requirement import NotAsked, check
from lightrft.testing.tiny import tiny_causal_lm, tiny_lora, tiny_tokenizer
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train

SAVED, LATER = 2, 4
"""Steps: a run is saved after the first two and compared after four."""

NEAR = 3e-5
"""Of parameters after two steps on other ranks: other sums in another order."""


class Run:
    """A model with tied weights, its optimizer and a schedule, of one strategy."""

    def __init__(self, bench: StrategyBench, *, seed: int = 0, layers: int = 1, lora: bool = False) -> None:
        self.strategy = bench.strategy
        model: torch.nn.Module = tiny_causal_lm(seed=seed, tie=not lora, layers=layers)
        model = tiny_lora(model, seed=seed) if lora else model
        self.model, self.optimizer = self.strategy.prepare_trainable(model, optimizer=SETTINGS)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))

    def train(self, first: int, last: int) -> None:
        train(self.strategy, self.model, self.optimizer, first=first, last=last, scheduler=self.scheduler, max_norm=1.0)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        self.strategy.save_ckpt(folder, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, client_state=state)

    def load(self, folder: Path) -> dict[str, Any]:
        return self.strategy.load_ckpt(folder, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """Of one input, on the CPU. Collective."""
        ids = torch.arange(20, device=self.strategy.world.device).reshape(1, 20)
        found: torch.Tensor = self.model(input_ids=ids).logits.float().cpu()
        return found

    def parameters(self) -> Tensors:
        return full_parameters(self.strategy, self.model)


def client_state() -> dict[str, Any]:
    """What a trainer keeps: counters, positions, and the states of random generators."""
    generator = torch.Generator().manual_seed(11)
    return {"step": SAVED, "rng": generator.get_state(), "sampler": [1, {"epoch": 2}], "coefficient": 0.25}


def draws(state: dict[str, Any]) -> list[float]:
    """What the run would draw next."""
    generator = torch.Generator()
    generator.set_state(state["rng"])
    return torch.rand(3, generator=generator).tolist()


@check("load_ckpt", after=NAMES)
def a_resumed_run_is_bitwise_the_same(bench: StrategyBench) -> None:
    """Parameters, optimizer and schedule: what is loaded replaces everything, in a fresh run as well; later steps have the same bits"""
    _resumed(bench, Run(bench), lambda: Run(bench, seed=7))


@check("load_ckpt", after=("a_resumed_run_is_bitwise_the_same",))
def a_resumed_run_of_adapters_is_bitwise_the_same(bench: StrategyBench) -> None:
    """The same of a model with LoRA adapters, whose base a new run reads again"""
    if importlib.util.find_spec("peft") is None:
        raise NotAsked("peft is not installed: pip install 'lightrft[lora]'")
    _resumed(bench, Run(bench, lora=True), lambda: Run(bench, lora=True))


def _resumed(bench: StrategyBench, run: Run, another: Callable[[], Run]) -> None:
    """Saves a run after two steps, and compares runs that load it with it then and two steps later."""
    folder = bench.folder / "resumed"
    run.train(0, SAVED)
    beside = Run(bench, seed=5)  # prepared last: what is saved and loaded is the model that is given
    run.save(folder, client_state())
    at_save, logits = run.parameters(), run.logits()
    run.train(SAVED, LATER)
    for what in ("another run", "a fresh run"):
        other = another()
        if what == "another run":
            other.train(8, 9)
        beside = Run(bench, seed=6)
        untouched = beside.parameters()
        other.logits()  # whatever a forward pass keeps for the next one is of older weights now
        other.load(folder)
        off = float((other.logits() - logits).abs().max())
        far, rate = largest_difference(other.parameters(), at_save), other.scheduler.get_last_lr()[0]
        other.train(SAVED, LATER)
        later = largest_difference(other.parameters(), run.parameters())
        assert far == 0, f"loaded into {what}, parameters differ from the saved ones by {far}"
        assert off < 1e-5, f"loaded into {what}, parameters are those saved, and logits are {off:.1e} off: it computes with other weights"
        assert largest_difference(beside.parameters(), untouched) == 0, "a load changed another model than the one that was given"
        assert rate == SETTINGS.learning_rate / (1 + SAVED), f"the schedule was not restored: its rate is {rate}"
        assert later == 0, (
            f"two steps after it was loaded into {what} the run differs by {later:.1e} from the one that was saved: its optimizer's state "
            "was not restored"
        )
        training = [name or "the model" for name, module in bench.strategy.unwrap(other.model).named_modules() if module.training]
        assert not training, f"in training mode after a load, so that dropout would be on: {', '.join(training[:3])}"


@check("save_ckpt", after=NAMES)
def a_run_is_not_changed_by_saving(bench: StrategyBench) -> None:
    """A run that saves goes on as one that does not"""
    run, undisturbed = Run(bench), Run(bench)
    run.train(0, 1)
    run.save(bench.folder / "undisturbed", {})
    run.train(1, 2)
    undisturbed.train(0, 2)
    far = largest_difference(run.parameters(), undisturbed.parameters())
    assert far == 0, f"parameters differ by {far} because the run was saved"


@check("load_ckpt", after=STEPS)
def client_state_comes_back_whole(bench: StrategyBench) -> None:
    """Numbers, texts, lists and tensors, the state of random generators among them, on every rank as rank 0 saved them"""
    run, state = Run(bench), client_state()
    run.save(bench.folder / "state", state)
    found = Run(bench).load(bench.folder / "state")
    lost = sorted(state.keys() - found.keys())
    assert not lost, f"client_state came back without {', '.join(lost)}: a resumed run would not be the same run"
    assert draws(found) == draws(state), "the state of a random generator (rng) came back changed: a resumed run would draw otherwise"
    plain = {name: value for name, value in found.items() if name != "rng"}
    assert plain == {name: value for name, value in state.items() if name != "rng"}, f"client_state came back as {plain}"


@check("save_ckpt", after=STEPS)
def a_save_that_fails_leaves_the_old_one_whole(bench: StrategyBench) -> None:
    """A full disk on one rank, at the end of its write: an error on all ranks, the older checkpoint unchanged, and no half one beside it"""
    run, folder = Run(bench), bench.folder / "kept"
    run.save(folder, {"step": 1})
    before = _contents(folder)
    run.train(0, 1)
    hook = run.strategy._save_state

    def full_disk(at: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        hook(at, model, optimizer)
        if bench.is_last:
            raise OSError(28, "No space left on device")

    with mock.patch.object(run.strategy, "_save_state", full_disk):
        said = refusal(lambda: run.save(folder, {"step": 2}))
    run.strategy.all_reduce(0.0)  # rank 0 takes away what was written once all ranks have stopped
    beside = [p.name for p in bench.folder.iterdir() if p.name.startswith(".kept")]
    kept, steps = _contents(folder), list[int]()
    unreadable = refusal(lambda: steps.append(run.load(folder)["step"]))
    assert said and "No space left on device" in said, f"a full disk on the last rank was told here (rank {bench.rank}) as {said!r}"
    assert kept == before, "a save that failed changed the older checkpoint: it is not written under a temporary name first"
    assert not beside, f"a save that failed left {beside} behind: a device without space would stay so"
    assert steps == [1], f"after a failed save the checkpoint is of step {steps}: {unreadable}"


@check("save_ckpt", after=NAMES)
def a_newer_save_replaces_the_older(bench: StrategyBench) -> None:
    """The same folder, saved again, holds the newer run and nothing of the older"""
    run, folder = Run(bench), bench.folder / "replaced"
    there = _names(bench)
    run.save(folder, {"step": 0})
    run.train(0, 1)
    run.save(folder, {"step": 1})
    beside = sorted(_names(bench) - there - {folder.name})
    assert not beside, f"two saves left {beside} beside the checkpoint: a device would fill up"
    other = Run(bench, seed=3)
    step = other.load(folder)["step"]
    far = largest_difference(other.parameters(), run.parameters())
    assert step == 1 and far == 0, f"the folder holds step {step}, parameters {far} from those of the newer save"


@check("load_ckpt", after=STEPS)
def a_checkpoint_of_another_model_is_refused(bench: StrategyBench) -> None:
    """More parameters than were saved, or fewer: a CheckpointError that names the first, on all ranks"""
    small, large = Run(bench), Run(bench, layers=2)
    small.save(bench.folder / "small", {})
    large.save(bench.folder / "large", {})
    for what, run, folder in (("lacks parameters of", large, "small"), ("has more parameters than", small, "large")):
        said = refusal(lambda: run.load(bench.folder / folder))  # noqa: B023  # called at once
        assert said is not None, f"a checkpoint that {what} this model was loaded without a word"
        assert "model.layers.1." in said, f"a checkpoint that {what} this model is refused without naming one: {said!r}"


@check("load_ckpt", after=STEPS)
def a_damaged_checkpoint_is_refused(bench: StrategyBench) -> None:
    """No folder, a file that is missing or changed by one bit: a CheckpointError on all ranks, and a good one loads afterwards"""
    run, good = Run(bench), bench.folder / "good"
    run.save(good, {"step": 5})
    if bench.rank == 0:
        for name in ("gone", "flipped"):
            shutil.copytree(good, bench.folder / name)
        largest = max((p for p in (bench.folder / "flipped").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(bytes(content))
        (bench.folder / "gone" / largest.name).unlink()
    run.strategy.all_reduce(0.0)
    for name in ("nowhere", "gone", "flipped"):
        said = refusal(lambda: run.load(bench.folder / name))  # noqa: B023  # called at once
        assert said is not None, f"a checkpoint that is {name} was loaded without a word"
        assert "\n" not in said, f"a checkpoint that is {name} is refused in more than one line: {said!r}"
    assert run.load(good)["step"] == 5, "a good checkpoint does not load after bad ones were refused"


@check("save_model", after=NAMES)
def a_saved_model_loads_in_transformers(bench: StrategyBench) -> None:
    """A HF folder with config, safetensors and tokenizer; equal bit by bit, tied weights tied"""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = bench.folder / "hf"
    model, optimizer = bench.strategy.prepare_trainable(tiny_causal_lm(tie=True), optimizer=SETTINGS)
    train(bench.strategy, model, optimizer, last=1)
    there = _names(bench)
    bench.strategy.save_model(model, folder, tokenizer=tiny_tokenizer())
    beside = sorted(_names(bench) - there - {folder.name})
    assert not beside, f"save_model left {beside} beside the folder: a device would fill up"
    expected = full_parameters(bench.strategy, model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    far = largest_difference({name: p.detach() for name, p in loaded.named_parameters()}, expected)
    assert far == 0, f"the saved folder differs by {far} from the trained model"
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight, "tied weights are no longer tied"
    assert len(AutoTokenizer.from_pretrained(folder)) == len(tiny_tokenizer()), "the tokenizer is not the one that was given"


@check("save_adapter", after=NAMES)
def saved_adapters_load_in_peft(bench: StrategyBench) -> None:
    """The folder that `PeftModel.from_pretrained` reads: with it the base model is the trained one; without adapters a ValueError"""
    if importlib.util.find_spec("peft") is None:
        raise NotAsked("peft is not installed: pip install 'lightrft[lora]'")
    from peft import PeftModel

    folder = bench.folder / "adapter"
    model, optimizer = bench.strategy.prepare_trainable(tiny_lora(tiny_causal_lm()), optimizer=SETTINGS)
    train(bench.strategy, model, optimizer, last=1)
    bench.strategy.save_adapter(model, folder)
    loaded: Any = PeftModel.from_pretrained(tiny_causal_lm(), folder).merge_and_unload()
    far = largest_difference({n: p.detach() for n, p in loaded.named_parameters()}, full_parameters(bench.strategy, model))
    assert far < NEAR, f"the base model with the saved adapters differs by {far:.1e} from the trained one"
    plain, _ = bench.strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    try:
        bench.strategy.save_adapter(plain, bench.folder / "no-adapter")
    except ValueError as error:
        assert "no adapters" in str(error), f"save_adapter of a model without adapters says {str(error)!r}"
        return
    raise AssertionError("save_adapter took a model without adapters")


def save_for_other_ranks(bench: StrategyBench, folder: Path) -> Tensors:
    """In a world of its own: a run saved after two steps; what it holds then and after two more."""
    run = Run(bench)
    run.train(0, SAVED)
    run.save(folder, client_state())
    at_save = run.parameters()
    run.train(SAVED, LATER)
    return {f"saved/{n}": t for n, t in at_save.items()} | {f"later/{n}": t for n, t in run.parameters().items()}


def resume_on_other_ranks(bench: StrategyBench, folder: Path) -> Tensors:
    """In a world of another size: what it holds when loaded, and after two steps."""
    run = Run(bench, seed=7)
    run.train(8, 9)
    run.load(folder)
    loaded = run.parameters()
    run.train(SAVED, LATER)
    return {f"saved/{n}": t for n, t in loaded.items()} | {f"later/{n}": t for n, t in run.parameters().items()}


def refusal(what: Callable[[], object]) -> str | None:
    """The message of the CheckpointError, or of the PeerError where only another rank saw it; None where there is none."""
    try:
        what()
    except (CheckpointError, PeerError) as error:
        return str(error)
    return None


def _names(bench: StrategyBench) -> set[str]:
    """What lies in the shared folder once all ranks are here."""
    bench.strategy.all_reduce(0.0)
    names = {p.name for p in bench.folder.iterdir()}
    bench.strategy.all_reduce(0.0)
    return names


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
