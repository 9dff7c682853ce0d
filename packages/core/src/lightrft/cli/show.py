"""Results on the console: tables for people; errors as plain lines, so that nothing wraps them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightrft.errors import UserError, see

if TYPE_CHECKING:
    from lightrft.plugins.registry import PluginEntry
    from lightrft.run.bundle import Bundle
    from lightrft.run.compare import Comparison

WIDE = 200
"""Columns where stdout is no terminal, so that no cell is truncated."""

STATE_STYLE = {"ok": "green", "broken": "red", "other api": "yellow", "no runtime": "yellow", "conflict": "red"}

DEMO_FILES = {
    "model": "the model, a Hugging Face folder",
    "plots": "reward curve, length distributions",
    "metrics.jsonl": "every metric of every step",
    "config.yaml": "the resolved settings",
}


def error(problem: UserError) -> None:
    """One line on stderr for each problem; the last ends with the section of the documentation that is about such."""
    for line in f"{problem} {see(problem.section)}".splitlines():
        print(f"error: {line}", file=sys.stderr)


def json_line(value: Mapping[str, Any]) -> None:
    """One JSON object as the last line of stdout."""
    print(json.dumps(dict(value)), flush=True)


def plugin_rows(entries: Sequence[PluginEntry]) -> list[dict[str, Any]]:
    """What `lightrft plugins` says of each plugin."""
    return [
        {
            "name": entry.name,
            "kind": entry.kind,
            "distribution": entry.provider.distribution,
            "version": entry.provider.version,
            "api": entry.spec.api if entry.spec else None,
            "capabilities": sorted(entry.spec.capabilities) if entry.spec else [],
            "state": entry.state,
            "reason": entry.reason,
            "summary": entry.spec.summary if entry.spec else "",
        }
        for entry in entries
    ]


def plugins(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of plugins; the last column has the reason of a state that is not ok, else what the plugin is."""
    cells = []
    for row in rows:
        style = STATE_STYLE[row["state"]]
        api = "?" if row["api"] is None else str(row["api"])
        about = row["reason"] or row["summary"]
        given = (row["kind"], row["name"], row["distribution"], row["version"], api, f"[{style}]{row['state']}[/]")
        cells.append((*given, ", ".join(row["capabilities"]), about.replace("[", r"\[")))
    table(("kind", "name", "distribution", "version", "API", "state", "capabilities", "about"), cells)


def new_plugin(made: Mapping[str, Any]) -> None:
    """The end of `lightrft new-plugin`: what was written, and what to do now."""
    for file in made["files"]:
        print(f"  {file}")
    print("\nnow:")
    print(f"  cd {made['folder']}")
    print("  pip install -e '.[test]'    the new plugins, beside this lightrft")
    print("  lightrft plugins            shows them")
    print("  pytest -m 'not slow'        every requirement, on 1 and 2 ranks; `pytest` alone asks 4 as well")
    print("  README.md                   what is where, and what to change", flush=True)


def doctor(found: Mapping[str, Any]) -> None:
    """What `lightrft doctor` found."""
    table(("library", "version"), [("python", found["python"]), *((name, v or "-") for name, v in found["libraries"].items())])
    gpus = ", ".join(found["gpus"]) or "none that torch can use: ranks run on the CPU with gloo"
    print(f"GPUs: {gpus}   CPUs: {found['cpus']}\n")
    cells = []
    for row in found["plugins"]:
        state = f"[{STATE_STYLE.get(row['state'], 'yellow')}]{row['state']}[/]"
        cells.append((row["kind"], row["name"], state, row["library"] or "-", row["needs"] or "-", row["fix"].replace("[", r"\[")))
    table(("kind", "name", "state", "its library here", "it works with", "what mends it"), cells)


def comparison(found: Comparison, page: Path) -> None:
    """What `lightrft compare` found, one column for each run."""
    from lightrft.run.compare import shown

    table(("", *found.names), [(name, *(shown(row[name]) for row in found.results)) for name in found.results[0]])
    rows = [(name, *(repr(value).replace("[", r"\[") for value in values)) for name, values in found.differing.items()]
    table(("setting", *found.names), rows) if rows else print("the settings are the same")
    print(f"page: {page}")


def bundle(found: Bundle, out: Path) -> None:
    """What `lightrft doctor --bundle` packed, and what not."""
    table(("packed", "bytes"), [(name, str(size)) for name, size in found.packed.items()])
    table(("left out", "why"), list(found.left_out.items()))
    print(f"bundle: {out}   (addresses, tokens and passwords that were recognised are ***; look into it before you send it)")


def conformance(report: Mapping[str, Any]) -> None:
    """The report of `lightrft conformance`: every requirement, what failed in full, the environment, and the verdict."""
    plugin, counts = report["plugin"], report["counts"]
    print(f"{plugin['kind']} {plugin['name']!r} of {plugin['provider']}, plugin API {plugin['api']}, ranks {plugin['ranks']}")
    print(f"declares: {', '.join(plugin['capabilities'])}")
    styles = {"passed": "green", "failed": "red"}
    rows = [
        (
            p["method"],
            p["name"].removeprefix("test_").replace("[", r"\["),
            f"[{styles.get(s := p['state'], 'yellow')}]{s}[/]",
            f"{p['seconds']:.1f}",
        )
        for p in report["requirements"]
    ]
    table(("of", "requirement", "verdict", "s"), rows)
    for requirement in report["requirements"]:
        if requirement["state"] == "failed":
            print(f"FAILED {requirement['name']}: {requirement['text']}\n  {requirement['message'].rstrip()}\n")
    blocked = Counter(p["message"] for p in report["requirements"] if p["state"] == "blocked")
    for reason, number in blocked.items():
        print(f"{number} more {'is' if number == 1 else 'are'} {reason}, and can be asked once that is met\n")
    environment = [
        f"{name} {', '.join(value) if isinstance(value, list) else value}" for name, value in report["environment"].items() if value
    ]
    print("environment: " + "; ".join(environment))
    verdict = "meets every requirement that it was asked for" if report["ok"] else f"fails {counts['failed']} requirements"
    numbers = ", ".join(f"{number} {state}" for state, number in counts.items())
    print(f"{plugin['kind']} {plugin['name']!r} {verdict}: {numbers}, {report['seconds']:.0f} s", flush=True)


def evaluation(metrics: Mapping[str, Any]) -> None:
    """The result of `lightrft eval`: the metrics, then a few of the best, the median and the worst completions."""
    table(("metric", "value"), [(name, _number(value)) for name, value in metrics.items() if name != "samples"])
    samples(metrics.get("samples", {}))


def samples(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Completions with their prompts and rewards, truncated to a line each."""
    cells = []
    for kind, rows in found.items():
        for row in rows:
            texts = (_cut(row["prompt"]), _cut(row["completion"]), _cut(row["answer"] or "-"))
            cells.append((kind, f"{row['reward']:.3f}", *(text.replace("[", r"\[") for text in texts)))
    if cells:
        table(("samples", "reward", "prompt", "completion", "reference"), cells)


def _cut(text: str, *, chars: int = 60) -> str:
    """One line; of a longer text its end, where an answer stands."""
    line = " ".join(text.split())
    return line if len(line) <= chars else "…" + line[1 - chars :]


def scores(result: Mapping[str, Any]) -> None:
    """The result of `lightrft score`."""
    rows = [("reward", "", result["reward"]), *((f"  {n}", f"{result['weights'][n]:g}", part) for n, part in result["parts"].items())]
    cells = [(name, weight, *(_number(part[key]) for key in ("mean", "min", "max"))) for name, weight, part in rows]
    table(("reward", "weight", "mean", "least", "most"), cells)
    print(f"{result['rows']} rows in {result['seconds']:.2f} s; scores: {result['out']}", flush=True)


def verdict(found: Mapping[str, Any]) -> None:
    """The result of `lightrft bisect-mismatch`."""
    cells = [
        (row["name"], *("" if row[part] is None else f"{row[part]:.2g}" for part in ("mean", "max")), row["note"])
        for row in found["experiments"]
    ]
    table(("experiment", "mean gap", "largest", "found"), cells)
    print(f"{found['cause']}: {found['detail']}")


def invariance(found: Mapping[str, Any]) -> None:
    """The result of `lightrft check-invariance`."""
    cells = [(row["ranks"], str(row["micro_train_batch_size"]), f"{row['difference']:.1e}") for row in found["splits"]]
    table(("groups over ranks", "micro_train_batch_size", "difference"), cells)
    batch = f"{found['completions']} completions, {found['tokens']} tokens, world size {found['world_size']}"
    algorithm = f"{found['advantage_estimator']}, {found['policy_loss']}, {found['loss_aggregation']}"
    verdict = "the update does not depend on the split" if found["invariant"] else "THE UPDATE DEPENDS ON THE SPLIT"
    first = "the first step is on its own policy" if found["on_policy"] else "THE FIRST STEP IS NOT ON ITS OWN POLICY"
    print(f"{first}: log-ratios up to {found['first_ratio_error']:.1e}, {found['first_clip_fraction']:.1%} of the tokens clipped")
    print(f"{algorithm}; {batch}\n{verdict}: gradients differ by at most {_largest(found):.1e} of the largest, bound {found['bound']:.0e}")


def _largest(found: Mapping[str, Any]) -> float:
    return max(float(row["difference"]) for row in found["splits"])


def training(summary: Mapping[str, Any]) -> None:
    """The end of `lightrft train`: what changed on the evaluation data, and where things are."""
    before, after = summary["eval_before"], summary["eval_after"]
    if after:
        table(("evaluation", "before", "after"), [(name, _number(before.get(name)), _number(after[name])) for name in after])
    else:
        table(("last rollout", "value"), [(name, _number(value)) for name, value in summary["last"].items()])
    print(f"{summary['steps']} rollouts in {summary['seconds']:.0f} s, world size {summary['world_size']}")
    if summary["stopped"]:
        print(f"stopped by {summary['stopped']}; checkpoint: {summary['checkpoint']}; go on with --resume_from latest", flush=True)
    else:
        print(f"run folder: {summary['run_dir']}   model: {summary['model_dir']}", flush=True)


def demo(result: Mapping[str, Any]) -> None:
    """The end of `lightrft demo`: accuracy before and after, time, where things are, what to try next."""
    run, model = result["run_dir"], result["model_dir"]
    gain = f"{result['accuracy_before']:.3f} -> {result['accuracy_after']:.3f}"
    print(f"\naccuracy {gain}   (greedy, held-out rows; {result['steps']} rollouts, {result['seconds']:.0f} s)\n")
    for name, about in DEMO_FILES.items():
        if (Path(run) / name).exists():
            print(f"  {Path(run) / name!s:<{len(run) + 15}}  {about}")
    print("\ntry next:")
    print("  lightrft demo --seed 1 --learning_rate 1e-3    the same with other settings (`lightrft demo --help`)")
    if model:  # a run that was stopped has saved none
        print(f"  lightrft eval --config {run}/config.yaml --model_name_or_path {model}")
    print("  lightrft train --config examples/recipes/gsm8k-tiny.yaml    the same loop on real questions")
    print("  lightrft plugins    which strategies, engines and rewards are installed", flush=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    made = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(made)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
