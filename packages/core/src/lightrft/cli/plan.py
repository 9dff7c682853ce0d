"""`lightrft plan`: from its words to a plan of the device's memory. Model configurations are read, no weights; no rank is started."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightrft.cli.flags import parse
from lightrft.cli.settings import merge, split
from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.errors import ConfigError, nearest

if TYPE_CHECKING:
    from lightrft.diagnostics.memory_plan import Plan

GIB = 2**30
WIDTH = 50
"""Characters of the widest bar."""

FILLS = "█▓▒░▚▞●○◆◇■□"
"""One for each part, in the order of the parts."""


def run_plan(words: Sequence[str], *, description: str) -> tuple[dict[str, Any], bool]:
    """The report, and whether it is wanted as JSON.

    Raises:
        ConfigError, ModelError: the flags, the settings, a GPU that is not known, or a model without a configuration.
    """
    rest, gpu = _taken(list(words), "--gpu")
    rest, ranks = _taken(rest, "--world")
    flags = parse(rest, command="plan", description=description, nproc_help="has no effect: no rank is started; see --world")
    good, problems = split(merge(flags, mode="train"))
    problems = [*flags.problems, *problems]
    if flags.nproc is not None:
        problems.append("--nproc-per-node has no effect: plan starts no rank; say --world N")
    world = int(ranks) if ranks is not None and re.fullmatch(r"[1-9]\d{0,5}", ranks) else None
    if ranks is not None and world is None:
        problems.append(f"--world {ranks!r}: give the number of ranks, a whole number of at least 1")
    device, problem = _device(gpu)
    config = make_config(good)
    if config.scratch_tokenizer == "none" and not config.model_name_or_path:
        problems.append("model_name_or_path is empty: give the HF folder or hub name whose memory is to be planned")
    if problem or problems:
        raise ConfigError([*problems, *([problem] if problem else [])])
    return _report(config, gpu=gpu or "", world=world or 1, device=device), flags.as_json


def print_report(report: Mapping[str, Any]) -> None:
    """For a person: a table, a bar for each phase, the verdict."""
    from lightrft.cli import show

    gib = report["gib"]
    parts = list(dict.fromkeys(part for phase in gib.values() for part in phase))
    device = f"{report['gpu']} ({report['device_gib']:.1f} GiB)"
    print(f"GiB on one of {report['world']} ranks, {device}, {report['parameters'] / 1e6:.1f} M parameters")
    rows = [(part, *(f"{phase[part]:.2f}" if part in phase else "" for phase in gib.values())) for part in parts]
    show.table(("part", *gib), [*rows, ("together", *(f"{sum(phase.values()):.2f}" for phase in gib.values()))])
    print(bars(gib, device=report["device_gib"]))
    print(host_line(report))
    print(verdict(report))


def host_line(report: Mapping[str, Any]) -> str:
    """What the settings put into the host's memory: for a rank, and for all of them, which may share one host."""
    parts, world = report["host_gib"], report["world"]
    if not parts:
        return "host memory: nothing is kept there"
    each = ", ".join(f"{part} {size:.2f}" for part, size in parts.items())
    total = sum(parts.values())
    return f"host memory: {total:.2f} GiB for each rank ({each}); {world * total:.2f} GiB for {world} on one host"


def bars(gib: Mapping[str, Mapping[str, float]], *, device: float) -> str:
    """A line for each phase: its parts, each with a character of its own, up to the device's end."""
    parts = list(dict.fromkeys(part for phase in gib.values() for part in phase))
    fill = {part: FILLS[index % len(FILLS)] for index, part in enumerate(parts)}
    scale = WIDTH / max(device, *(sum(phase.values()) for phase in gib.values()))
    wide = max(map(len, gib))
    end = round(device * scale)
    lines = []
    for name, phase in gib.items():
        line, total = "", 0.0
        for part, size in phase.items():
            total += size
            line += fill[part] * (round(total * scale) - len(line))
        line = line.ljust(end)
        lines.append(f"{name:<{wide}} {line[:end]}|{line[end:]}")
    return "\n".join([*lines, "  ".join(f"{fill[part]} {part}" for part in parts)])


def verdict(report: Mapping[str, Any]) -> str:
    """Whether it fits, and what would make it."""
    told = f"most in {report['fullest']}: {report['most_gib']:.1f} of {report['device_gib']:.1f} GiB"
    if report["fits"]:
        return f"fits; {told}"
    if report["kv_cache_gib"] < report["kv_needed_gib"]:
        told += f"; the KV cache gets {report['kv_cache_gib']:.2f} GiB, and one sequence needs {report['kv_needed_gib']:.2f}"
    remedy = report["remedy"]
    if remedy is None:
        return f"does not fit: {told}; no setting and no number of ranks up to {8 * report['world']} makes it fit: take a smaller model"
    flags = [f"--{name} {str(value).lower() if isinstance(value, bool) else value}" for name, value in remedy["settings"].items()]
    ranks = [f"--world {remedy['world']}"] if remedy["world"] != report["world"] else []
    return f"does not fit: {told}\nfits with {' '.join([*flags, *ranks])} (most: {remedy['most_gib']:.1f} GiB, in {remedy['fullest']})"


def _report(config: Config, *, gpu: str, world: int, device: int) -> dict[str, Any]:
    from lightrft.diagnostics.memory_plan import cheapest, make_plan
    from lightrft.trainer.plan_models import shapes_of

    models = shapes_of(config)
    plan = make_plan(config, models, world=world, device=device)
    remedy = None if plan.fits else cheapest(config, models, world=world, device=device)
    return {
        "gpu": gpu,
        "world": world,
        "parameters": models.actor.total,
        **_told(plan),
        "gib": {name: {part: round(size / GIB, 3) for part, size in parts.items()} for name, parts in plan.phases.items()},
        "host_gib": {part: round(size / GIB, 3) for part, size in plan.host.items()},
        "remedy": None if remedy is None else {"settings": dict(remedy.settings), "world": remedy.world, **_told(remedy.plan)},
    }


def _told(plan: Plan) -> dict[str, Any]:
    return {
        "fits": plan.fits,
        "fullest": plan.fullest,
        "most_gib": round(plan.total(plan.fullest) / GIB, 3),
        "device_gib": round(plan.device / GIB, 3),
        "kv_cache_gib": round(plan.kv_cache / GIB, 3),
        "kv_needed_gib": round(plan.kv_needed / GIB, 3),
    }


def _device(gpu: str | None) -> tuple[int, str]:
    """The bytes of a GPU of that name, or a problem."""
    from lightrft.diagnostics.memory_plan import GPUS

    known = f"known: {', '.join(GPUS)}, or a size such as 48g"
    if gpu is None:
        return 0, f"--gpu is missing: the GPU to plan for ({known})"
    if gpu in GPUS:
        return int(GPUS[gpu] * GIB), ""
    if size := re.fullmatch(r"(\d{1,5}(?:\.\d+)?)g", gpu.lower()):
        return int(float(size[1]) * GIB), ""
    return 0, f"--gpu {gpu!r} is not known{nearest(gpu, GPUS)} ({known})"


def _taken(words: list[str], flag: str) -> tuple[list[str], str | None]:
    """The words without the flag and its value, and the value."""
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            value = value if equals else (words[at + 1] if at + 1 < len(words) else "")
            return words[:at] + words[at + (1 if equals else 2) :], value
    return words, None
