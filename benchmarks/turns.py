"""A rollout of episodes of unequal turns with vLLM: turns that join those that are drawn, against turn by turn, which waits for all.

    .venv-vllm/bin/python benchmarks/turns.py                      # a tiny model on CPUs
    .venv-vllm/bin/python benchmarks/turns.py --seconds 0.2        # environments that take up to 0.4 s for an answer

Both arms in turns, `--rounds` times each: medians of seconds and of vLLM's steps. The episodes of both are the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.experience.episodes import Episodes
from lightrft.models.scratch import char_tokenizer
from lightrft.strategy import get_strategy
from lightrft.testing.counted import count_calls
from lightrft.testing.turn_scenario import UNEVEN, WORDS, turn_by_turn, turn_folder
from lightrft.types import SamplingParams


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=12, help="prompts, of 1 to 6 turns")
    parser.add_argument("--samples", type=int, default=4, help="episodes of each")
    parser.add_argument("--turn", type=int, default=40, help="tokens of a turn, at most")
    parser.add_argument("--seconds", type=float, default=0.0, help="an environment takes none of these, one or two")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arms = measure(args, turn_folder(Path(folder)))
    if args.json:
        print(json.dumps({"benchmark": "turns", "settings": vars(args), "arms": arms}))
    return 0


def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Prints a row for each arm, and returns their medians."""
    config = make_config({
        "strategy": "single", "engine_type": "vllm", "model_name_or_path": str(folder), "max_turns": max(UNEVEN), "turn_max_len": args.turn,
        "environment": "lightrft.testing.turn_scenario:Uneven", "prompt_max_len": 40,
        "generate_max_len": 10 + max(UNEVEN) * (args.turn + 4),
    })  # fmt: skip
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    tokenizer = char_tokenizer([WORDS])
    episodes = Episodes(strategy=strategy, config=config, tokenizer=tokenizer)
    rows = [{"turns": UNEVEN[at % len(UNEVEN)], "seconds": args.seconds} for at in range(args.rows)]
    ids = [tuple(tokenizer(WORDS[at % 10 :])["input_ids"]) for at in range(args.rows)]
    prompts = [Prompt(index=at, text="", token_ids=ids[at], answer=None, row=row) for at, row in enumerate(rows)]
    sampling = SamplingParams(n=args.samples, max_new_tokens=config.generate_max_len)
    engine: Any = strategy.inference_engine
    steps = count_calls(engine._llm.llm_engine.engine_core, "get_output")
    found: dict[str, list[tuple[float, int, int]]] = {"joining": [], "turn by turn": []}
    drawn = set()
    for number in range(-1, args.rounds):  # the first warms up
        for arm, how in (("joining", nullcontext()), ("turn by turn", turn_by_turn(strategy))):
            strategy.restore_engine(weight_version=0, calls=0)
            strategy.reset_engine_cache()
            with how:
                begun, before = time.perf_counter(), steps()
                played = episodes.play(prompts, sampling, sleep_engine=False)
                seconds = time.perf_counter() - begun
            drawn.add(tuple(token for one in played for token in one.token_ids))
            if number >= 0:
                found[arm].append((seconds, steps() - before, sum(sum(one.sampled) for one in played)))
    assert len(drawn) == 1, "the arms drew other tokens"
    arms = {}
    for arm, rounds in found.items():
        seconds, made, tokens = (statistics.median(column) for column in zip(*rounds, strict=True))
        arms[arm] = {"seconds": seconds, "steps": made, "tokens_per_s": tokens / seconds}
        print(f"{arm:13} {seconds:6.2f} s   {made:5.0f} steps   {tokens / seconds:7.0f} tokens/s")
    strategy.shutdown()
    return arms


if __name__ == "__main__":
    raise SystemExit(main())
