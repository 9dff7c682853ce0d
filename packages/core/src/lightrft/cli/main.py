"""The commands: `lightrft demo, train, eval, score, plugins, doctor`, and more. Nothing heavy before one runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
import typer.core

from lightrft.cli import show
from lightrft.errors import ConfigError, UserError, nearest

TRACEBACK_FLAG, TRACEBACK_VARIABLE = "--traceback", "LIGHTRFT_TRACEBACK"
TRAIN = "Trains as a recipe and flags say; flags win. Starts one rank for each GPU, unless it is itself run by torchrun."
EVAL = (
    "Evaluates --model_name_or_path on --eval_data with the rewards of the settings: greedy and, with --n N, also pass@k, maj@k and avg@k "
    "of N samples for each --k; --out FILE.jsonl gets all completions."
)
EVAL_SHORT = {"n": "eval_n", "k": "eval_k", "out": "eval_out"}
DEMO = (
    "A tiny model learns to sort six digits, through the code path of a cluster; or with --task vision to name a colour that it sees, with "
    "tools to call a function, with gridworld to walk to a field. Defaults: strategy fsdp, engine hf, seed 0."
)
BISECT = "Finds out why engine and trainer disagree on log-probs: the settings of a run, its model, engine and strategy."
INVARIANCE = "Splits one recorded rollout over ranks and micro-batches several ways, and prints how far the updates of a recipe lie apart."
PLUGINS = "Lists what is installed, and why a part of it does not work."
NEW_PLUGIN = "Begins a plugin of yours: a distribution with one plugin of each kind and its tests, in a new folder NAME."
SCORE = "Tries rewards on completions that exist: rows of prompt, completion and answer; no model, no GPU."
PROMPTS = "Shows the first prompts of a recipe as model and rewards see them: special tokens, ids, mask, stop tokens. --rows N (default 3)."
PLAN = (
    "Plans the memory of one rank's GPU, phase by phase, before anything starts: whether a recipe fits, and what makes it fit. "
    "--gpu h100-80g (or a size, 48g) and --world N (ranks, default 1); reads model configurations, no weights."
)
PROVE = (
    "Shows that a run can be resumed: goes on from one of its checkpoints, in a folder of its own, to the next one, and compares metrics, "
    "weights, optimizer and all other state with the run's. Exit code 1 where they differ."
)
CONFORMANCE = "Runs the conformance kit on an installed strategy or engine: every requirement of its contract, and a report for an issue."
DOCTOR = (
    "Says what is installed, which strategy and engine works here, and the command that mends what does not. With --bundle RUN it packs a "
    "run folder for a bug report."
)
REPORT = "One self-contained HTML page of a run, whatever state it is in: curves, distributions, samples, warnings, settings."
ENGINE_REPORT = (
    "Runs a few rollouts of a recipe as it is and with each --set of options, and prints speed, memory, start time, and how far the "
    "engine's log-probs are from the trainer's."
)
COMPARE = "Several runs beside each other: what came of each, the settings that differ, and one HTML page with their curves."
WATCH = "A page of a run that goes on, on loopback, and loads itself again: phases, curves, newest samples, and whether it stands still."
PASS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Argparse reads all flags, help included: they are generated from the settings, and for any of its own, --help too, typer loads
pydantic.
"""

ABOUT = """Reinforcement fine-tuning of language models.

`lightrft COMMAND --help` lists the flags of a command. What you did wrong is told in a line each; --traceback shows where.
"""
OTHERWISE = {
    "resume": "a run goes on with `lightrft train --config RUN/config.yaml --resume_from latest`",
    "evaluate": "it is `lightrft eval`",
    "generate": "it is lightrft.generate in Python; `lightrft eval --out FILE.jsonl` keeps completions",
    "samples": "`lightrft report RUN` and `lightrft watch RUN` show them; they are in RUN/samples.jsonl",
    "serve": "`lightrft watch RUN` serves a run's page; RUN/model is a model folder for any server",
}
"""What a user may look for, and where it is."""


class Commands(typer.core.TyperGroup):
    """A command that there is not is told as other mistakes are, in one line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            there = f"; {OTHERWISE[name]}" if name in OTHERWISE else f"{nearest(name, self.commands)} (`lightrft --help` lists all)"
            raise UserError(f"no command {name!r}{there}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="lightrft",
    cls=Commands,
    help=ABOUT,
    invoke_without_command=True,
    context_settings={"help_option_names": []},
    options_metavar="",
    add_completion=False,
    rich_markup_mode=None,  # the plain help: rich would cost a third of the start-up time
    pretty_exceptions_enable=False,
)


def run() -> None:
    """The console entry. Exit codes: 0, 2 for a user error, else 1 (or 128 + a signal)."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return _run()
    from lightrft.distributed.rank_exit import exit_rank

    try:
        _run()
    except SystemExit as left:  # as typer ends, whatever came
        exit_rank(left.code if isinstance(left.code, int) else int(left.code is not None))


def _run() -> None:
    words = sys.argv[1:]
    if TRACEBACK_FLAG in words:
        os.environ[TRACEBACK_VARIABLE] = "1"
    words = [word for word in words if word != TRACEBACK_FLAG]
    try:
        app(args=[] if words[:1] in (["--help"], ["-h"]) else words, prog_name="lightrft")
    except UserError as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        if os.environ.get("RANK", "0") == "0":  # under torchrun every rank finds the same
            show.error(error)
        sys.exit(2)


@app.callback()
def overview(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(context_settings=PASS, help=DEMO, short_help="A tiny model learns to sort, in minutes, on a laptop.")
def demo(context: typer.Context) -> None:
    from lightrft.cli.demo import run_demo
    from lightrft.cli.flags import parse

    flags = parse(context.args, command="demo", description=DEMO, nproc_help="ranks (default: 2)", takes_recipe=False)
    result = run_demo(flags)
    show.demo(result)
    if flags.as_json:
        show.json_line(result)


@app.command(context_settings=PASS, help=TRAIN, short_help="Trains from a recipe and flags.")
def train(context: typer.Context) -> None:
    from lightrft.cli.flags import parse
    from lightrft.cli.start import run_command

    flags = parse(context.args, command="train", description=TRAIN, nproc_help="ranks (default: one for each GPU, else 1)")
    summary = run_command(flags, mode="train")
    if os.environ.get("RANK", "0") == "0":
        show.training(summary)
        if flags.as_json:
            show.json_line(summary)


@app.command("eval", context_settings=PASS, help=EVAL, short_help="Evaluates a model folder.")
def evaluate(context: typer.Context) -> None:
    from lightrft.cli.flags import parse
    from lightrft.cli.start import run_command

    flags = parse(context.args, command="eval", description=EVAL, nproc_help="ranks (default: one for each GPU, else 1)", short=EVAL_SHORT)
    metrics = run_command(flags, mode="eval")
    if os.environ.get("RANK", "0") == "0":
        show.evaluation(metrics)
        if flags.as_json:
            show.json_line(metrics)


@app.command("bisect-mismatch", context_settings=PASS, help=BISECT, short_help="Finds out why engine and trainer disagree.")
def bisect_mismatch(context: typer.Context) -> None:
    from lightrft.cli.flags import parse
    from lightrft.cli.start import run_command

    flags = parse(context.args, command="bisect-mismatch", description=BISECT, nproc_help="ranks (default: one for each GPU, else 1)")
    verdict = run_command(flags, mode="bisect")
    if os.environ.get("RANK", "0") == "0":
        show.verdict(verdict)
        if flags.as_json:
            show.json_line(verdict)


@app.command("engine-report", context_settings=PASS, help=ENGINE_REPORT, short_help="Measures what options of an engine do.")
def engine_report(context: typer.Context) -> None:
    from lightrft.cli.engine_report import as_json, run_engine_report

    rows, wants_json = run_engine_report(context.args, description=ENGINE_REPORT)
    if wants_json:
        show.json_line(as_json(rows))
    if any(row.rc for row in rows):
        sys.exit(1)


@app.command(context_settings=PASS, help=SCORE, short_help="Tries rewards on a file of completions.")
def score(context: typer.Context) -> None:
    from lightrft.cli.score import run_score

    result, as_json = run_score(context.args, description=SCORE)
    show.scores(result)
    if as_json:
        show.json_line(result)


@app.command("show-prompts", context_settings=PASS, help=PROMPTS, short_help="Prompts as the model reads them, before a GPU is paid for.")
def show_prompts(context: typer.Context) -> None:
    from lightrft.cli.prompts import print_report, run_show_prompts

    report, as_json = run_show_prompts(context.args, description=PROMPTS)
    print_report(report)
    if as_json:
        show.json_line(report)


@app.command(context_settings=PASS, help=PLAN, short_help="Does a recipe fit a GPU? Memory by phase, before anything starts.")
def plan(context: typer.Context) -> None:
    from lightrft.cli.plan import print_report, run_plan

    report, as_json = run_plan(context.args, description=PLAN)
    print_report(report)
    if as_json:
        show.json_line(report)


@app.command("prove-resume", context_settings=PASS, help=PROVE, short_help="Is a resumed run the run? A part of it again, compared.")
def prove_resume(context: typer.Context) -> None:
    from lightrft.cli.prove import print_report, run_prove

    report, as_json = run_prove(context.args, description=PROVE)
    print_report(report)
    if as_json:
        show.json_line(report)
    if not report["same"]:
        sys.exit(1)


@app.command(
    "check-invariance", context_settings=PASS, help=INVARIANCE, short_help="Does a recipe's update depend on how a batch is split?"
)
def check_invariance(context: typer.Context) -> None:
    from lightrft.cli.flags import parse
    from lightrft.cli.start import run_command

    flags = parse(context.args, command="check-invariance", description=INVARIANCE, nproc_help="ranks (default: one for each GPU, else 1)")
    found = run_command(flags, mode="invariance")
    if os.environ.get("RANK", "0") == "0":
        show.invariance(found)
        if flags.as_json:
            show.json_line(found)
    if not (found["invariant"] and found["on_policy"]):
        sys.exit(1)


@app.command(context_settings=PASS, help=REPORT)
def report(context: typer.Context) -> None:
    from lightrft.cli.report import write_report

    parser = argparse.ArgumentParser(prog="lightrft report", description=REPORT)
    parser.add_argument("run", help="the run folder (output_dir)")
    parser.add_argument("--out", metavar="FILE.html", help="where to write the page (default: report.html in the run folder)")
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    given = parser.parse_args(context.args)
    result = write_report(given.run, out=given.out)
    for line in result["unreadable"]:
        print(f"WARNING: {line}", flush=True)
    print(f"report: {result['report']}   ({result['state']}, {result['steps']} rollouts, {result['warnings']} warnings)", flush=True)
    if result["tokens"]:
        print(f"samples token by token: {result['tokens']}", flush=True)
    if given.json:
        show.json_line(result)


@app.command(context_settings=PASS, help=COMPARE)
def compare(context: typer.Context) -> None:
    from lightrft.cli.report import write_comparison

    parser = argparse.ArgumentParser(prog="lightrft compare", description=COMPARE)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders (output_dir), 2 to 8")
    parser.add_argument("--out", metavar="FILE.html", help="where to write the page (default: comparison.html in the present folder)")
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    given = parser.parse_args(context.args)
    found, page = write_comparison(given.runs, out=given.out)
    show.comparison(found, page)
    if given.json:
        results = dict(zip(found.names, found.results, strict=True))
        show.json_line({"page": str(page), "runs": found.names, "results": results, "differing": found.differing})


@app.command(context_settings=PASS, help=WATCH)
def watch(context: typer.Context) -> None:
    from lightrft.cli.watch import server

    parser = argparse.ArgumentParser(prog="lightrft watch", description=WATCH)
    parser.add_argument("run", metavar="RUN", help="the run folder (output_dir)")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: a free one)")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="how often the page loads itself again (default: 5)")
    given = parser.parse_args(context.args)
    with server(given.run, port=given.port, every_s=given.every) as serving:
        print(f"watch: http://127.0.0.1:{serving.server_port}/   ({given.run}; ends with Ctrl-C)", flush=True)
        with suppress(KeyboardInterrupt):
            serving.serve_forever()


@app.command(context_settings=PASS, help=PLUGINS)
def plugins(context: typer.Context) -> None:
    from lightrft.plugins.registry import Registry

    parser = argparse.ArgumentParser(prog="lightrft plugins", description=PLUGINS)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    as_json = parser.parse_args(context.args).json
    rows = show.plugin_rows(Registry.discover().entries())
    if as_json:
        show.json_line({"plugins": rows})
    else:
        show.plugins(rows)


@app.command("new-plugin", context_settings=PASS, help=NEW_PLUGIN, short_help="Begins a plugin of yours.")
def new_plugin(context: typer.Context) -> None:
    from pathlib import Path

    from lightrft.plugins import scaffold
    from lightrft.plugins.registry import Registry

    parser = argparse.ArgumentParser(prog="lightrft new-plugin", description=NEW_PLUGIN)
    parser.add_argument("name", metavar="NAME", help="of the distribution; its plugins are called the same, without a leading 'lightrft-'")
    parser.add_argument("--dir", type=Path, default=Path(), help="where the new folder NAME goes (default: here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    given = parser.parse_args(context.args)
    files = scaffold.new_plugin(given.name, parent=given.dir, registry=Registry.discover())
    made = {"name": given.name, "folder": str(given.dir / given.name), "files": [str(given.dir / file) for file in files]}
    show.new_plugin(made)
    if given.json:
        show.json_line(made)


@app.command(context_settings=PASS, help=CONFORMANCE, short_help="Tests an installed strategy or engine.")
def conformance(context: typer.Context) -> None:
    from lightrft.cli.conformance import run_conformance

    parser = argparse.ArgumentParser(prog="lightrft conformance", description=CONFORMANCE)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--strategy", metavar="NAME", help="an installed training backend")
    which.add_argument("--engine", metavar="NAME", help="an installed inference engine")
    parser.add_argument("--ranks", type=int, choices=(1, 2, 4), help="of a strategy: on so many ranks (default: 1, and 2 where it can)")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    given = parser.parse_args(context.args)
    kind = "strategy" if given.strategy else "engine"
    report = run_conformance(kind, given.strategy or given.engine, ranks=given.ranks)
    show.conformance(report)
    if given.json:
        show.json_line(report)
    sys.exit(0 if report["ok"] else 1)


@app.command(context_settings=PASS, help=DOCTOR)
def doctor(context: typer.Context) -> None:
    from lightrft.cli.doctor import examine
    from lightrft.plugins.registry import Registry

    parser = argparse.ArgumentParser(prog="lightrft doctor", description=DOCTOR)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    parser.add_argument("--bundle", metavar="RUN", help="pack a run folder for a bug report: no secrets, and no data unless asked")
    parser.add_argument("--out", metavar="FILE.tar.gz", help="where the bundle goes (default: RUN-bundle.tar.gz in the present folder)")
    parser.add_argument("--with-data", action="store_true", help="the bundle holds samples and evaluations too")
    given = parser.parse_args(context.args)
    found = examine(Registry.discover())
    if given.bundle is not None:
        _bundle(given, found)
    elif given.out or given.with_data:
        raise ConfigError(["--out and --with-data belong to --bundle RUN"])
    elif given.json:
        show.json_line(found)
    else:
        show.doctor(found)


def _bundle(given: argparse.Namespace, found: Mapping[str, Any]) -> None:
    from lightrft.run.bundle import write_bundle

    run = Path(given.bundle).expanduser()
    out = Path(given.out).expanduser() if given.out else Path(f"{run.resolve().name}-bundle.tar.gz")
    bundle = write_bundle(run, out, about=found, with_data=given.with_data)
    show.bundle(bundle, out)
    if given.json:
        show.json_line({"bundle": str(out), "packed": bundle.packed, "left_out": bundle.left_out})


if __name__ == "__main__":
    run()
