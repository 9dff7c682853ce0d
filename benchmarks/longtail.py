"""Steps that wait for their longest answer against steps that do not: seconds a step, and trained tokens per second.

The lengths of answers are planned: log-normal, and one prompt in 64 runs to the limit (the engine's draw ends an answer there, so what it
computes is real). Both arms are whole runs of the trainer on the same stream of prompts with the engine `hf`; the partial one is given
`--max_version_lag` and `--oversample`. The arms take turns, `--rounds` times each, so that other work on the machine is beside both;
medians over rounds are compared. The first two steps of a run are not counted. A pass is the engine's model over all running answers, one
token each: how many there are for a trained token does not depend on the machine, and seconds of CPU depend on it less than those by the
clock.

`--seeds N --picture FILE.png` also trains both arms with N seeds for a reward that can be learnt (the fraction of one digit in an answer,
which no length changes), and draws their curves over updates and over seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from lightrft.engine import hf_generate
from lightrft.run.plots import BLUE, ORANGE
from lightrft.testing.small_trainer import make_trainer, odd_tokens, prompts
from lightrft.types import Sample

LEAST = 1.3
"""How much faster a token is trained at least."""

EVERY = 64
"""One prompt in so many runs to the limit."""

EOS, OTHER = 1, 5

LEARNT = "7"
"""What an answer is to be made of, where curves are drawn."""

TAIL = 5
"""Updates over which the last rewards are averaged."""

Row = dict[str, float]
Mark = tuple[int, float]

passes = [0]
"""Of the engine's model so far, one token of each running answer in each."""


def main() -> int:
    """Returns 1 where the bound is missed."""
    args = arguments()
    some = prompts(args.prompts)
    lengths = planned([prompt.token_ids for prompt in some], args)
    plan_lengths(lengths)
    tenths = statistics.quantiles(lengths.values(), n=10)
    print(f"lengths of the answers to {len(lengths)} prompts, tenths: {' '.join(f'{one:.0f}' for one in tenths)}, longest {args.longest}")
    partial = {"max_version_lag": args.lag, "oversample": args.oversample, "slice_max_len": args.slice}
    runs: dict[str, list[dict[str, float]]] = {"whole": [], "partial": []}
    for at in range(args.rounds):
        for name, changes in (("whole", {}), ("partial", partial)):
            runs[name].append(run(some, args, **changes))
            print(f"round {at + 1}, {name:8} {runs[name][-1]['tokens_per_s']:.0f} trained tokens/s", flush=True)
    arms = {name: {key: statistics.median(one[key] for one in found) for key in found[0]} for name, found in runs.items()}
    for name, one in arms.items():
        print(f"{name:8} {one['step_s']:.3f} s a step, of it {one['rollout_s']:.3f} s rollout; {one['tokens_per_s']:.0f} trained tokens/s")
    found = {"speedup": arms["partial"]["tokens_per_s"] / arms["whole"]["tokens_per_s"]}
    found["passes_ratio"] = arms["whole"]["passes_per_1000_tokens"] / arms["partial"]["passes_per_1000_tokens"]
    found["cpu_ratio"] = arms["whole"]["cpu_s_per_1000_tokens"] / arms["partial"]["cpu_s_per_1000_tokens"]
    found["step_ratio"] = arms["whole"]["step_s"] / arms["partial"]["step_s"]
    faster = f"a token is trained {found['speedup']:.2f}x as fast, in {found['passes_ratio']:.2f}x fewer passes"
    faster += f" and {found['cpu_ratio']:.2f}x fewer seconds of CPU"
    print(f"lag {arms['partial']['lag']:.2f} updates on average; {faster}")
    good = found["speedup"] >= LEAST
    if args.seeds:
        found["curves"] = curves(some, args, partial)
    if args.json:
        print(json.dumps({"benchmark": "longtail", "ok": good, "settings": vars(args), **arms, **found, "rounds": runs}, default=str))
    return 0 if good else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32, help="prompts of a step, two answers each")
    parser.add_argument("--median", type=float, default=24.0, help="of the lengths, in tokens")
    parser.add_argument("--sigma", type=float, default=0.6, help="of the logarithm of the lengths")
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each arm, in turns")
    parser.add_argument("--lag", type=int, default=1)
    parser.add_argument("--oversample", type=float, default=1.5)
    parser.add_argument("--slice", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=0, help="also train both arms with so many seeds, and draw their rewards")
    parser.add_argument("--learn_steps", type=int, default=24, help="updates of such a run")
    parser.add_argument("--picture", type=Path, default=Path("longtail.png"))
    parser.add_argument("--json", action="store_true", help="make the last line one JSON object")
    args = parser.parse_args()
    if args.steps < 3 or args.rounds < 1:
        parser.error("--steps has to be at least 3, the first two of which are not counted, --rounds at least 1")
    if args.seeds < 0 or args.learn_steps < TAIL:
        parser.error(f"--seeds has to be at least 0, --learn_steps at least {TAIL}, over which the last rewards are averaged")
    return args


def planned(ids: list[tuple[int, ...]], args: argparse.Namespace) -> dict[tuple[int, ...], int]:
    """The length of each prompt's answers."""
    draw = random.Random(0)
    drawn = [min(max(round(args.median * math.exp(draw.gauss(0, args.sigma))), 1), args.longest) for _ in ids]
    for at in draw.sample(range(len(ids)), len(ids) // EVERY):
        drawn[at] = args.longest
    return dict(zip(ids, drawn, strict=True))


def plan_lengths(lengths: dict[tuple[int, ...], int]) -> None:
    """The engine's draw ends an answer at its planned length, and nowhere else. A prompt is what ends in `=`, an answer has none."""
    [end] = {ids[-1] for ids in lengths}

    class Planned(hf_generate._Batch):
        def _draw(self, logits: torch.Tensor, step: int) -> torch.Tensor:
            if step == 0:
                starts = [list(r.prompt_token_ids).index(end) + 1 for r in self.requests]
                left = [
                    lengths[tuple(r.prompt_token_ids[:s])] - len(r.prompt_token_ids) + s for r, s in zip(self.requests, starts, strict=True)
                ]
                self.left = torch.tensor(left, device=self.device).repeat_interleave(self.sampling.n)
            passes[0] += 1
            token = super()._draw(logits, step)
            token = torch.where((token == EOS) | (token == end), OTHER, token)
            return torch.where(self.left == step + 1, EOS, token)

    hf_generate._Batch = Planned  # type: ignore[misc]


def run(some: list[Any], args: argparse.Namespace, **changes: Any) -> dict[str, float]:
    """Medians of a run's steps, and of all steps the trained tokens by their seconds."""
    rows, marks = fit(some, args, **changes)
    rows = rows[2:]
    return {
        "step_s": statistics.median(row["time/step_s"] for row in rows),
        "rollout_s": statistics.median(row["time/rollout_s"] for row in rows),
        "tokens_per_s": sum(row["tokens/rollout"] for row in rows) / sum(row["time/step_s"] for row in rows),
        "passes_per_1000_tokens": 1000 * (marks[-1][0] - marks[1][0]) / sum(row["tokens/rollout"] for row in rows),
        "cpu_s_per_1000_tokens": 1000 * (marks[-1][1] - marks[1][1]) / sum(row["tokens/rollout"] for row in rows),
        "lag": statistics.mean(row.get("partial/lag_mean", 0.0) for row in rows),
    }


def fraction_of_digit(samples: Sequence[Sample]) -> list[float]:
    """Of the digit in each completion."""
    return [sample.completion.count(LEARNT) / max(len(sample.completion), 1) for sample in samples]


def curves(some: list[Any], args: argparse.Namespace, partial: dict[str, Any]) -> dict[str, Any]:
    """The rewards of both arms for each seed, on one picture; of the last updates the mean over seeds, and the seconds of a run."""
    found: dict[str, Any] = {}
    lines = []
    for name, changes in (("whole", {}), ("partial", partial)):
        runs = []
        for seed in range(args.seeds):
            rows, _ = fit(
                some, args, reward=fraction_of_digit, max_steps=args.learn_steps, num_episodes=99, learning_rate=2e-3, seed=seed, **changes
            )
            seconds = list(accumulate(row["time/step_s"] for row in rows))
            runs.append(([row["rollout/reward"] for row in rows], seconds))
            lines.append((name, *runs[-1]))
        last = statistics.mean(statistics.mean(rewards[-TAIL:]) for rewards, _ in runs)
        first = statistics.mean(rewards[0] for rewards, _ in runs)
        found[name] = {"first": first, "last": last, "seconds": statistics.mean(seconds[-1] for _, seconds in runs)}
        spent = found[name]["seconds"]
        print(f"{name:8} reward {first:.3f} at first, {last:.3f} over the last {TAIL} of {args.learn_steps} updates; {spent:.0f} s")
    draw(lines, args.picture)
    return found


def draw(lines: list[tuple[str, list[float], list[float]]], path: Path) -> None:
    """One line a run: left over updates, right over seconds."""
    from matplotlib import rc_context  # which the timings do not need
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours, told = {"whole": BLUE, "partial": ORANGE}, set()
    for name, rewards, seconds in lines:
        label = None if name in told else {"whole": "lag 0", "partial": "lag 1, oversampled"}[name]
        told.add(name)
        left.plot(range(1, len(rewards) + 1), rewards, color=colours[name], linewidth=1.2, label=label)
        right.plot(seconds, rewards, color=colours[name], linewidth=1.2)
    left.set(xlabel="updates", ylabel="mean reward of a rollout")
    right.set(xlabel="seconds of training")
    left.legend(frameon=False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": ""}):
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(f"curves: {path}")


def fit(some: list[Any], args: argparse.Namespace, *, reward: Any = odd_tokens, **changes: Any) -> tuple[list[Row], list[Mark]]:
    """The metrics of each step of a run, and how many passes and seconds of CPU there were by its end."""
    settings: dict[str, Any] = dict(
        strategy="single", engine_type="hf", max_steps=args.steps, rollout_batch_size=args.batch, n_samples_per_prompt=2,
        train_batch_size=2 * args.batch, micro_train_batch_size=8, micro_rollout_batch_size=4 * args.batch, generate_max_len=args.longest,
        logprob_gap_prompts=2, learning_rate=1e-4, train_prompts=some, eval_prompts=[],
    )  # fmt: skip
    marks: list[Mark] = []
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(
            Path(folder), reward=reward, callbacks=[lambda _: marks.append((passes[0], time.process_time()))], **settings | changes
        ).fit()
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "time/rollout_s" in row], marks


if __name__ == "__main__":
    raise SystemExit(main())
