"""The predicted time of a step on 8, 64 and 512 GPUs. From the phases of one GPU (`phases.py`) and the messages of a step.

The work of a step stays the same (strong scaling), or grows with the GPUs (`--weak`). On N GPUs in nodes of 8:
  rollout  the part that no batch shortens (`rollout_fixed_s`), and the rest divided by N
  update   its time on one GPU divided by N; beside it, as far as it is longer than the computation that hides it, the traffic of FSDP2:
           each block gathered twice for a micro-batch, gradients reduced once for a step
  sync     its time on one GPU, and one gather of all weights
  others   divided by N; a message of each for what ranks agree on
With `--measured FILE` of another number of GPUs the model's error there is printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PHASES = ("rollout", "reward", "logprob", "advantage", "update", "sync", "rest")
AGREEMENTS = 20
"""Small messages of a step, each waited for: of the rollout, the update and the sync (`make collectives` counts them)."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a rank sends a second within a node and between nodes, bytes, and how long the smallest message takes, seconds."""

    node_size: int = 8
    inside: float = 300e9
    between: float = 40e9
    latency_s: float = 3e-5

    def bandwidth(self, ranks: int) -> float:
        """Of a ring over so many ranks: that of its slowest link."""
        return self.inside if ranks <= self.node_size else self.between

    def around_s(self, size: float, ranks: int) -> float:
        """Seconds of an all-gather or a reduce-scatter of `size` bytes in all."""
        steps = ranks - 1
        return 0.0 if steps == 0 else size * steps / ranks / self.bandwidth(ranks) + steps * self.latency_s


def predict(one: Mapping[str, float], ranks: int, *, network: Network, weak: bool = False) -> dict[str, float]:
    """Seconds of each phase on so many ranks, and of the step. `one`: numbers of `phases.py` on one GPU."""
    fraction = 1.0 if weak else 1.0 / ranks
    fixed = one.get("rollout_fixed_s", 0.0)
    micro = max(1.0, one["micro_batches"] * fraction)
    update = one["update_s"] * fraction
    traffic = network.around_s(2 * micro * one["weight_bytes"], ranks) + network.around_s(2 * one["weight_bytes"], ranks)
    found = {name: one[f"{name}_s"] * fraction for name in ("reward", "logprob", "advantage")}
    found |= {
        "rollout": fixed + (one["rollout_s"] - fixed) * fraction,
        "update": update + max(0.0, traffic - update),
        "sync": one["sync_s"] + network.around_s(one["weight_bytes"], ranks),
        "rest": one["rest_s"] + (AGREEMENTS * network.latency_s * max(1, (ranks - 1).bit_length()) if ranks > 1 else 0.0),
    }
    return found | {"step": sum(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path, help="the JSON of `phases.py` on one GPU")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 8, 64, 512])
    parser.add_argument("--weak", action="store_true", help="as much work for each GPU as one had")
    parser.add_argument("--measured", type=Path, help="the JSON of `phases.py` on several GPUs")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args()
    one = json.loads(given.one.read_text(encoding="utf-8"))["numbers"]
    rows = {ranks: predict(one, ranks, network=Network(), weak=given.weak) for ranks in given.ranks}
    print("| GPUs | " + " | ".join(PHASES) + " | step, s | efficiency |\n" + "|---" * (len(PHASES) + 3) + "|")
    for ranks, row in rows.items():
        efficiency = rows[min(rows)]["step"] / row["step"] / (1 if given.weak else ranks / min(rows))
        print(f"| {ranks} | " + " | ".join(f"{row[name]:.3f}" for name in PHASES) + f" | {row['step']:.3f} | {efficiency:.0%} |")
    if given.measured:
        held = json.loads(given.measured.read_text(encoding="utf-8"))["numbers"]
        ranks = int(held["ranks"])
        errors = {
            n: predict(one, ranks, network=Network(), weak=given.weak)[n] / held[f"{n}_s"] - 1
            for n in ("rollout", "update", "sync", "step")
        }
        print(f"on {ranks} GPUs the model is off by " + ", ".join(f"{name} {error:+.0%}" for name, error in errors.items()))
    if given.json:
        print(json.dumps({str(ranks): row for ranks, row in rows.items()}))


if __name__ == "__main__":
    main()
