"""One arm of `vs_trl.py`, in an environment that has trl 1.16: GRPOTrainer on the same model, prompts and reward. The last line is JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

WARM = 2


def now() -> float:
    """After the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Steps(TrainerCallback):  # type: ignore[misc]
    """The seconds of each whole step, and of the parts that are added up meanwhile."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.parts: dict[str, float] = {}

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self.since = now()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        end = now()
        self.rows.append({"wall_s": end - self.since, **self.parts})
        self.since, self.parts = end, {}

    def timed(self, owner: Any, name: str, part: str) -> None:
        """`owner.name` from now on adds its seconds to that part."""
        method: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return method(*args, **kwargs)
            finally:
                self.parts[part] = self.parts.get(part, 0.0) + now() - start

        setattr(owner, name, call)


def fraction_even(completions: Any, completion_ids: list[list[int]], **_: Any) -> list[float]:
    """As `random_models.fraction_even`."""
    return [sum(i % 2 == 0 for i in ids) / max(1, len(ids)) for ids in completion_ids]


def config_of(given: argparse.Namespace) -> GRPOConfig:
    """The same work as our arm's; the rest are TRL's defaults."""
    on_gpu = torch.cuda.is_available()
    generation: dict[str, Any] = {"use_vllm": False, "generation_kwargs": {"min_new_tokens": given.new_tokens}}
    if given.vllm:
        generation = {
            "use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": given.mem_util, "vllm_enable_sleep_mode": True,
            "vllm_max_model_length": given.prompt_len + given.new_tokens,
            "generation_kwargs": {"min_tokens": given.new_tokens, "ignore_eos": True},
        }  # fmt: skip
    rows = given.prompts * given.samples // given.ranks
    return GRPOConfig(
        output_dir=str(given.work / "trl"), report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, max_steps=given.steps,
        per_device_train_batch_size=given.micro, gradient_accumulation_steps=rows // given.micro, num_generations=given.samples,
        max_completion_length=given.new_tokens, num_iterations=1, beta=0.0, learning_rate=given.learning_rate, lr_scheduler_type="constant",
        gradient_checkpointing=False, model_init_kwargs={"dtype": "bfloat16" if on_gpu else "float32"}, use_cpu=not on_gpu, bf16=on_gpu,
        seed=0, temperature=1.0, **generation,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("model", str), ("data", Path), ("work", Path), ("mem-util", float), ("learning-rate", float)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name in ("prompts", "samples", "prompt-len", "new-tokens", "micro", "steps", "ranks"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--vllm", action="store_true")
    given = parser.parse_args()
    rows = [json.loads(line)["prompt"] for line in given.data.read_text(encoding="utf-8").splitlines()]
    data = Dataset(InMemoryTable.from_pydict({"prompt": rows}), fingerprint="random")
    steps = Steps()
    trainer = GRPOTrainer(model=given.model, args=config_of(given), train_dataset=data, reward_funcs=fraction_even, callbacks=[steps])
    steps.timed(trainer, "_generate_and_score_completions", "generate_and_score_s")
    if given.vllm:
        steps.timed(trainer.vllm_generation, "sync_weights", "sync_s")
        steps.timed(trainer.vllm_generation.llm, "generate", "engine_s")
    trainer.train()
    if trainer.accelerator.is_main_process:
        steady = steps.rows[WARM:]
        found: dict[str, Any] = {name: round(statistics.median(row.get(name, 0.0) for row in steady), 4) for name in steady[-1]}
        found["walls_s"] = [round(row["wall_s"], 3) for row in steady]
        found["rewards"] = [round(row["reward"], 4) for row in trainer.state.log_history if "reward" in row]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
