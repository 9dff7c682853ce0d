"""A new plugin is the template with other names in it; what cannot be one is refused in a line."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lightrft.errors import UserError
from lightrft.plugins import Registry
from lightrft.plugins.scaffold import Names, new_plugin, template_folder

NOTHING = Registry([])


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rocket", Names("rocket", "rocket", "rocket", "Rocket")),
        ("my-engine2", Names("my-engine2", "my_engine2", "my-engine2", "MyEngine2")),
        ("my_engine", Names("my-engine", "my_engine", "my-engine", "MyEngine")),
        ("lightrft-rocket-sled", Names("lightrft-rocket-sled", "lightrft_rocket_sled", "rocket-sled", "RocketSled")),
    ],
)
def test_one_name_gives_all_of_them(name, expected):
    assert Names.of(name) == expected


def test_a_new_plugin_has_its_own_names_everywhere_and_the_templates_nowhere(tmp_path):
    made = new_plugin("my-engine", parent=tmp_path, registry=NOTHING)
    found = files_of(tmp_path)
    assert sorted(map(str, made)) == sorted(found)
    assert [name for name, text in found.items() if "acme" in (name + text).lower()] == []
    project = tomllib.loads(found["my-engine/pyproject.toml"])
    assert project["project"]["name"] == "my-engine"
    assert project["project"]["entry-points"]["lightrft.plugins"] == {"my-engine": "my_engine.plugin"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/my_engine"]
    assert "class MyEngineStrategy(StrategyBase):" in found["my-engine/src/my_engine/strategy.py"]
    for name, text in found.items():
        if name.endswith(".py"):
            ast.parse(text)


def test_under_the_templates_own_name_it_is_the_template(tmp_path):
    new_plugin("lightrft-acme", parent=tmp_path, registry=NOTHING)
    template = template_folder()
    found = files_of(tmp_path / "lightrft-acme")
    assert {"README.md", "pyproject.toml", "src/lightrft_acme/strategy.py", "tests/test_parts.py"} <= found.keys()
    assert found == {name: (template / name).read_text(encoding="utf-8") for name in found}


def test_what_lies_about_in_the_template_is_left_out(tmp_path, monkeypatch):
    template = tmp_path / "template"
    for name in ("pyproject.toml", "src/a.py", "src/__pycache__/a.pyc", ".pytest_cache/x", "dist/x.whl", "lightrft_acme.egg-info/x"):
        (template / name).parent.mkdir(parents=True, exist_ok=True)
        (template / name).write_text("", encoding="utf-8")
    monkeypatch.setattr("lightrft.plugins.scaffold.template_folder", lambda: template)
    assert sorted(map(str, new_plugin("rocket", parent=tmp_path, registry=NOTHING))) == ["rocket/pyproject.toml", "rocket/src/a.py"]


@pytest.mark.parametrize("name", ["", "Rocket", "2fast", "-x", "x-", "a--b", "a-_b", "a.b", "a b", "../x", "/tmp/x", "é"])
def test_a_name_that_cannot_be_one_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot be the name of a plugin; possible: lower-case letters, digits") as caught:
        new_plugin(name, parent=tmp_path, registry=NOTHING)
    assert repr(name) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("class", "which is a word of Python; try 'lightrft-class'"),
        ("json", "which is a word of Python; try 'lightrft-json'"),
        ("torch", "import package 'torch', which is installed in "),
        ("lightrft", "import package 'lightrft', which is installed in "),
        ("lightrft-hf", "engine 'hf' is there already, from lightrft "),
        ("grpo", "advantage 'grpo' is there already, from lightrft "),
        ("sglang", "engine 'sglang' "),
    ],
)
def test_a_name_that_is_taken_is_refused(tmp_path, name, words):
    with pytest.raises(UserError) as caught:
        new_plugin(name, parent=tmp_path, registry=Registry.discover())
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["a folder", "an empty folder", "a file"])
def test_what_is_there_already_is_left_alone(tmp_path, there):
    target = tmp_path / "rocket"
    if there == "a file":
        target.write_text("mine", encoding="utf-8")
    else:
        target.mkdir()
    if there == "a folder":
        (target / "notes.txt").write_text("mine", encoding="utf-8")
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(UserError, match="exists; choose another name, or another place with --dir"):
        new_plugin("rocket", parent=tmp_path, registry=NOTHING)
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_place_that_cannot_be_written_is_told_in_a_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written: Not a directory; choose another place with --dir"):
        new_plugin("rocket", parent=tmp_path / "file", registry=NOTHING)


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lightrft.cli.main", "new-plugin", *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=folder, timeout=60, check=False)


def test_the_command_says_what_it_wrote_and_what_to_do(tmp_path):
    done = command("rocket", "--dir", "mine", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert (made["name"], made["folder"]) == ("rocket", "mine/rocket")
    assert sorted(made["files"]) == sorted(files_of(tmp_path))
    assert "cd mine/rocket" in done.stdout and "pytest" in done.stdout


def test_the_command_refuses_with_one_line_and_code_2(tmp_path):
    assert command("rocket", folder=tmp_path).returncode == 0
    done = command("rocket", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: 'rocket' exists; choose another name, or another place with --dir (docs: ")
