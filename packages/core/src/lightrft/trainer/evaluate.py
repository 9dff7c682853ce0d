"""Evaluates the model on held-out prompts. Greedy and sampled completions over all ranks, each prompt once; metrics and samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.distributed.collectives import gather_objects
from lightrft.experience.episodes import Episodes
from lightrft.experience.images import PromptImages
from lightrft.experience.samples import samples_of
from lightrft.experience.sampling import eval_greedy_params, eval_sample_params
from lightrft.experience.scored import score_everywhere
from lightrft.rewards.load import NamedReward
from lightrft.run.evaluate_samples import best_worst_median
from lightrft.run.pictures import small_copies
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.trainer.eval_metrics import majority_at_k, pass_at_k, vote_of
from lightrft.types import Sample

EvalSets = Mapping[str, Sequence[Prompt]]
Row = dict[str, Any]
GREEDY, SAMPLED = "greedy", "sampled"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`metrics` are means over all prompts and, of several sets, over each (`eval/SET/NAME`); `rows`, on rank 0, all completions."""

    metrics: dict[str, float]
    rows: list[Row]


def evaluate(
    sets: EvalSets,
    *,
    strategy: StrategyBase,
    config: Config,
    tokenizer: Any,
    rewards: Sequence[NamedReward],
    episodes: Episodes | None = None,
    images: PromptImages | None = None,
) -> Evaluation:
    """`eval/reward` (weighted sum), `eval/NAME` of each reward and `eval/length_mean` of the greedy completions and, with `eval_n`
    samples of each prompt, `eval/pass@k`, `eval/maj@k` and `eval/avg@k` for each k of `eval_k`. Collective.

    The samples are drawn as in a rollout, where `eval_temperature`, `eval_top_p`, `eval_top_k` and `eval_max_len` do not say otherwise.

    `images` reads those of prompts. With `episodes`, what is drawn and rewarded are whole episodes.

    `sets` are whole, on every rank; each rank takes every world-size-th prompt. avg@k is the mean reward, estimated from all n samples.

    Raises:
        RewardError: a reward failed, on all ranks together.
    """
    everything = [(name, prompt) for name, prompts in sets.items() for prompt in prompts]
    mine = everything[strategy.world.rank :: strategy.world.world_size]
    kinds = {GREEDY: eval_greedy_params(config)} | ({SAMPLED: eval_sample_params(config)} if config.eval_n else {})
    rows: list[Row] = []
    for kind, sampling in kinds.items():
        # The engine stays awake for the rollout that follows a sync: at sleep level 2 it would lose the weights that it has just got.
        prompts = [prompt for _, prompt in mine]
        if episodes is not None:
            found = episodes.samples(episodes.play(prompts, sampling, sleep_engine=False))
        else:
            read = (images or PromptImages(None, world=strategy.world)).read(prompts)
            outputs = strategy.gather_and_generate(sampling_params=sampling, **read.asked, sleep_engine=False)
            found = samples_of(prompts, outputs, tokenizer=tokenizer, pictures=read.pictures)
        scored = _scored(found, kind, mine, sampling.n, strategy=strategy, rewards=rewards)
        rows += _with_pictures(scored, found) if kind == GREEDY else scored
    metrics = _means(rows, {name: len(prompts) for name, prompts in sets.items()}, strategy=strategy, config=config, rewards=rewards)
    gathered = gather_objects(rows, group=strategy.world.group)
    return Evaluation(metrics=metrics, rows=[row for rank in gathered for row in rank] if strategy.is_rank_0 else [])


def write_rows(path: Path, rows: Sequence[Row], *, step: int | None = None) -> None:
    """One line for each completion."""
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = {} if step is None else {"step": step}
    path.write_text("".join(json.dumps({**extra, **row}, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _scored(
    found: Sequence[Sample],
    kind: str,
    mine: Sequence[tuple[str, Prompt]],
    n: int,
    *,
    strategy: StrategyBase,
    rewards: Sequence[NamedReward],
) -> list[Row]:
    scores = score_everywhere(found, rewards=rewards, strategy=strategy, reward_key=strategy.config.reward_key)
    rows = []
    for at, sample in enumerate(found):
        name, prompt = mine[at // n]
        rows.append(
            {
                "dataset": name,
                "index": prompt.index,
                "kind": kind,
                "prompt": sample.prompt,
                "completion": sample.completion,
                "answer": sample.answer,
                "reward": scores.total[at],
                "rewards": {part: values[at] for part, values in scores.parts.items()},
                "num_tokens": sample.num_tokens,
                "finish_reason": sample.finish_reason,
            }
        )
    return rows


def _with_pictures(rows: Sequence[Row], found: Sequence[Sample]) -> list[Row]:
    """Of this rank's best, median and worst the images, too, which pages show."""
    shown = [id(row) for some in best_worst_median(rows).values() for row in some]
    pairs = zip(rows, found, strict=True)
    return [row | {"images": small_copies(one.images)} if one.images and id(row) in shown else row for row, one in pairs]


def _means(
    rows: Sequence[Row], sizes: Mapping[str, int], *, strategy: StrategyBase, config: Config, rewards: Sequence[NamedReward]
) -> dict[str, float]:
    names = ["reward", *(f"part/{reward.name}" for reward in rewards), *(f"num/{reward.name}" for reward in rewards), "length_mean"]
    if config.eval_n:
        names += [f"{what}@{k}" for k in eval_ks(config) for what in ("pass", "avg", "maj")]
    sums = {(one, name): 0.0 for one in sizes for name in names}
    for row in rows:
        if row["kind"] == GREEDY:
            parts = {k: v for k, v in row["rewards"].items() if v is not None}  # None: that reward does not count for the row
            values = {"reward": row["reward"], "length_mean": row["num_tokens"]} | {f"part/{k}": v for k, v in parts.items()}
            values |= {f"num/{k}": 1.0 for k in parts}
            for name, value in values.items():
                sums[row["dataset"], name] += value
    sampled = [row for row in rows if row["kind"] == SAMPLED]
    for start in range(0, len(sampled), max(config.eval_n, 1)):
        group = sampled[start : start + config.eval_n]
        for name, value in _of_samples(group, config).items():
            sums[group[0]["dataset"], name] += value
    row_of_sums = strategy.all_reduce(torch.tensor(list(sums.values()), dtype=torch.float64), "sum").tolist()
    totals = dict(zip(sums, row_of_sums, strict=True))
    found = {}
    for name in names:
        if name.startswith("num/"):
            continue
        short = name.removeprefix("part/")
        numbers = {one: totals[one, f"num/{short}"] if name != short else float(size) for one, size in sizes.items()}
        found[f"eval/{short}"] = sum(totals[one, name] for one in sizes) / max(sum(numbers.values()), 1.0)
        if len(sizes) > 1:
            found |= {f"eval/{one}/{short}": totals[one, name] / max(number, 1.0) for one, number in numbers.items()}
    return found


def _of_samples(group: Sequence[Row], config: Config) -> dict[str, float]:
    """Of the n samples of one prompt."""
    right = [row["reward"] >= config.eval_right_at for row in group]
    votes = [vote_of(row["completion"]) for row in group]
    mean = sum(row["reward"] for row in group) / len(group)
    found = {}
    for k in eval_ks(config):
        found[f"pass@{k}"] = pass_at_k(num_samples=len(group), num_right=sum(right), k=k)
        found[f"avg@{k}"] = mean
        found[f"maj@{k}"] = majority_at_k(votes, right, k=k)
    return found


def eval_ks(config: Config) -> list[int]:
    """The k of pass@k and its kin: `eval_k`, by default 1 and `eval_n`."""
    return sorted(set(config.eval_k or [1, config.eval_n]))
