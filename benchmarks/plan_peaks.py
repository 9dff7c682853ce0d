"""What `lightrft plan` says of each phase against what runs on this CPU hold, counted by torch's allocator. `make plan-peaks`.

Each row is a run of two steps: the second one's peak in each phase on rank 0, with all that lives then. A phase without a pass of its own
in a cell (log-probs that nothing asks for) is left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_model_folder

MIB = 2**20
WITHIN = 0.1
TENSORS = (torch.Tensor, torch.nn.Parameter)
SHAPE: dict[str, int] = dict(vocab_size=2048, layers=4, hidden=256, heads=8, kv_heads=4)
BASE: dict[str, Any] = {
    "engine_type": "hf", "rollout_batch_size": 4, "n_samples_per_prompt": 4, "train_batch_size": 16, "micro_train_batch_size": 2,
    "micro_rollout_batch_size": 2, "prompt_max_len": 64, "generate_max_len": 64, "max_steps": 2, "learning_rate": 1e-4, "plot_every": 0,
    "save_samples": 0, "compile": "no", "logprob_gap_prompts": 0, "verify_sync_every": 0, "loggers": ["jsonl"],
}  # fmt: skip
CRITIC, LORA = {"advantage_estimator": "gae"}, {"lora_rank": 8, "lora_alpha": 16}
ZERO: dict[str, dict[str, Any]] = {f"zero-{stage}": {"strategy": "deepspeed", "zero_stage": stage} for stage in range(4)}
BACKENDS: dict[str, dict[str, Any]] = {"single": {"strategy": "single"}, "fsdp": {"strategy": "fsdp"}, **ZERO}
FURTHER: dict[str, dict[str, Any]] = {"": {}, "bf16": {"bf16": True}, "kl": {"kl_coef": 0.1}, "critic": CRITIC, "lora": LORA}
CELLS = {f"{backend} {name}".strip(): settings | further for name, further in FURTHER.items() for backend, settings in BACKENDS.items()}
DAILY = [name for name in CELLS if name.split()[0] in ("single", "fsdp", "zero-2") or " " not in name]

PHASES = {"rollout": "rollout", "logprob": "reference pass", "update": "update", "optimizer step": "optimizer step", "sync": "sync"}
"""Of a run, and of the plan."""


def main() -> int:
    """Returns 1 where the fullest phase of a cell is farther from the plan than `WITHIN`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=DAILY)
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    given = parser.parse_args()
    found = {}
    print("cell: plan in MiB against what was measured, by phase; * the fullest")
    for name in given.cells:
        found[name] = cell(name)
        print(line(name, found[name]), flush=True)
    worst = max(found, key=lambda name: abs(error_of_peak(found[name])))
    print(f"largest error of a peak: {error_of_peak(found[worst]):+.1%} ({worst})")
    if given.json:
        print(json.dumps(found))
    return 0 if abs(error_of_peak(found[worst])) <= WITHIN else 1


def line(name: str, found: dict[str, tuple[int, int]]) -> str:
    """One row of the table."""
    most = max(found, key=lambda phase: found[phase][1])
    told = (
        f"{'*' if phase == most else ''}{phase} {plan / MIB:.1f}/{real / MIB:.1f} {plan / real - 1:+.1%}"
        for phase, (plan, real) in found.items()
    )
    return f"{name}: {', '.join(told)}"


def error_of_peak(found: dict[str, tuple[int, int]]) -> float:
    """Of the plan's highest phase against the highest one that was measured, relative."""
    return max(plan for plan, _ in found.values()) / max(real for _, real in found.values()) - 1


def cell(name: str) -> dict[str, tuple[int, int]]:
    """By phase: bytes of the plan, and of the run."""
    with tempfile.TemporaryDirectory(prefix="lightrft-plan-") as folder:
        settings = BASE | CELLS[name] | workload(Path(folder))
        return run_spmd(measured, 1 if settings["strategy"] == "single" else 2, settings, timeout_s=600)[0]


def workload(folder: Path) -> dict[str, Any]:
    """A model, and prompts that are as long as the settings allow."""
    tiny_model_folder(folder / "model", **SHAPE)  # type: ignore[arg-type]
    length = BASE["prompt_max_len"]
    rows = [{"prompt": f"{i} + {i} =".rjust(length - 1, "a"), "answer": str(2 * i)} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "rows.jsonl"), "output_dir": str(folder / "run")}


def measured(settings: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """On one rank: the whole run under torch's profiler, which sees what the allocator gives to this thread."""
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # weights would be made in other threads
    from lightrft.config.load import make_config
    from lightrft.diagnostics.memory_plan import make_plan
    from lightrft.strategy import get_strategy
    from lightrft.trainer.build import build_trainer
    from lightrft.trainer.plan_models import shapes_of
    from lightrft.trainer.reward_models import as_rewards
    from lightrft.trainer.spmd_ppo import SPMDPPOTrainer

    config = make_config(settings)

    def marked(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            with record_function(f"phase:{name}:{live_bytes()}"):
                return method(*args, **keywords)

        return call

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        strategy = get_strategy(config)
        strategy.setup_inference_engine(config, engine_type=config.engine_type, model_path=config.model_name_or_path)
        trainer = build_trainer(
            config,
            strategy,
            model_path=config.model_name_or_path,
            rewards=as_rewards([lambda samples: [float(at % 3) for at in range(len(samples))]], config=config, strategy=strategy),
            phases={name: marked(name, getattr(SPMDPPOTrainer, name)) for name in PHASES if hasattr(SPMDPPOTrainer, name)},
        )
        strategy.optimizer_step = marked("optimizer step", strategy.optimizer_step)  # type: ignore[method-assign]
        trainer.fit()
    plan = make_plan(config, shapes_of(config), world=strategy.world.world_size, device=2**40, cuda=False)
    peaks = peaks_of(found)
    strategy.shutdown()
    asked = {phase: name for phase, name in PHASES.items() if name in plan.phases}
    return {phase: (plan.total(name), peaks[phase]) for phase, name in asked.items()}


def live_bytes() -> int:
    """Of all tensors that Python knows: between phases that is all there is, while some were freed by threads that the profiler ignores."""
    known = [one for one in gc.get_objects() if type(one) in TENSORS]
    storages = [one.untyped_storage() for one in [*known, *(one.grad for one in known if one.is_leaf and type(one.grad) in TENSORS)]]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def peaks_of(found: Any) -> dict[str, int]:
    """The most bytes in each phase since the last rollout began: those of its beginning, and what the allocator gave out since. A phase
    within another counts as itself alone.
    """
    events = found.profiler.kineto_results.events()
    memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    windows = [(e.start_ns(), e.start_ns() + e.duration_ns(), *e.name().split(":")[1:]) for e in events if e.name().startswith("phase:")]
    last = max(begin for begin, _, name, _ in windows if name == "rollout")
    peaks: dict[str, int] = {}
    given: dict[int, int] = {}
    now = 0
    for at, size in memory:
        now += size
        inside = [window for window in windows if last <= window[0] <= at <= window[1]]
        if inside:
            begin, _, name, live = max(inside)
            for window in inside:
                given.setdefault(window[0], now - size)
            peaks[name] = max(peaks.get(name, 0), int(live) + now - given[begin])
    return peaks


if __name__ == "__main__":
    sys.exit(main())
