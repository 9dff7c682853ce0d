"""The files that start LightRFT elsewhere: images, Kubernetes, SkyPilot. Nothing is built or launched here; what they name is there, and
the command that they come to is one that torchrun and `lightrft train` take.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
KNOWN = ("ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD")


def instructions(file: Path) -> list[tuple[str, str]]:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined)]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_is_made_of_what_is_there(file: Path) -> None:
    found = instructions(file)
    assert all(word in KNOWN for word, _ in found), found
    before = [word for word, _ in found[: [word for word, _ in found].index("FROM")]]
    assert set(before) <= {"ARG"}
    [base] = [rest for word, rest in found if word == "FROM"]
    base = next((rest.partition("=")[2] for word, rest in found if word == "ARG" and rest.startswith("BASE=")), base)
    assert re.fullmatch(r"[a-z0-9/._-]+:[a-z0-9._-]+", base) and not base.endswith(":latest")
    for word, rest in found:
        if word == "COPY":
            assert (ROOT / rest.split()[0]).exists(), rest
        if word in ("ENTRYPOINT", "CMD"):
            assert json.loads(rest), "the form without a shell"
        if word == "WORKDIR":
            assert rest.startswith("/")
    words = [word for word, _ in found]
    assert words.index("USER") < words.index("ENTRYPOINT"), "programs that a model wrote do not run as root"
    assert ("ENTRYPOINT", '["lightrft"]') in found


@pytest.mark.parametrize("file", [*DOCKERFILES, ROOT / "examples/skypilot/train.yaml"], ids=lambda file: file.name)
def test_the_packages_and_extras_that_are_installed_exist(file: Path) -> None:
    named = re.findall(r"\./(packages/[\w-]+)(?:\[([\w,]+)\])?", file.read_text(encoding="utf-8"))
    assert ("packages/backend-fsdp", "") in named
    for package, extras in named:
        project = tomllib.loads((ROOT / package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert set(filter(None, extras.split(","))) <= set(project.get("optional-dependencies", {})), package


def command_of(script: str, folder: Path, **env: str) -> list[str]:
    """The words that a script gives to torchrun, which a stand-in writes down."""
    torchrun = folder / "torchrun"
    torchrun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    torchrun.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-ec", script], env={"PATH": path, **env}, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.splitlines()


def check_command(words: list[str], *, nodes: int, per_node: int, node: int, endpoint: str, recipe: str) -> None:
    given = get_args_parser().parse_args(words)
    assert (given.nnodes, given.nproc_per_node, given.node_rank) == (str(nodes), str(per_node), node)
    assert (given.rdzv_backend, given.rdzv_endpoint) == ("c10d", endpoint)
    assert given.module and given.training_script == "lightrft.cli.main"
    assert given.training_script_args == ["train", "--config", recipe]


def test_kubernetes(tmp_path: Path) -> None:
    service, job = yaml.safe_load_all((ROOT / "examples/kubernetes/job.yaml").read_text(encoding="utf-8"))
    name, spec = job["metadata"]["name"], job["spec"]
    pod: dict[str, Any] = spec["template"]["spec"]
    [container] = pod["containers"]
    env = {one["name"]: one["value"] for one in container["env"]}
    assert service["spec"]["selector"] == {"job-name": name} and pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed" and str(spec["completions"]) == str(spec["parallelism"]) == env["NODES"]
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == env["GPUS"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] == ["bash", "-ec"]
    words = command_of(*container["args"], tmp_path, **env, JOB_COMPLETION_INDEX="1")
    check_command(words, nodes=2, per_node=8, node=1, endpoint=f"{name}-0.{pod['subdomain']}:29500", recipe="recipe.yaml")


def test_skypilot(tmp_path: Path) -> None:
    task = yaml.safe_load((ROOT / "examples/skypilot/train.yaml").read_text(encoding="utf-8"))
    recipe = task["envs"]["RECIPE"]
    assert (ROOT / recipe).is_file()
    own = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    words = command_of(task["run"], tmp_path, **own, SKYPILOT_NODE_RANK="1", RECIPE=recipe)
    check_command(words, nodes=2, per_node=8, node=1, endpoint="10.0.0.1:29500", recipe=recipe)
    assert all(shlex.split(line) for line in task["setup"].splitlines())
