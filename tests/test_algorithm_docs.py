"""The pages of the algorithms show settings that can be run; every built-in one is on a page, in a tiny and in a real recipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import learn_pages
from lightrft.config import make_config, read_recipe
from lightrft.config.algorithm_checks import algorithm_problems
from lightrft.config.ignored import ignored_settings
from lightrft.plugins import Registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs/algorithms").glob("*.md"))
BUILT_IN = [
    (entry.kind, entry.name)
    for entry in Registry.discover().entries()
    if entry.kind in ("advantage", "policy_loss") and entry.provider.distribution == "lightrft"
]


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "README"], ids=lambda page: page.stem)
def test_the_settings_of_a_page_go_together(page: Path) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    config = make_config(yaml.safe_load(block))
    assert [*algorithm_problems(config, Registry.discover()), *ignored_settings(config)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`(examples/[^`]*|lightrft/[^`]*\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "packages/core/src" / name).exists(), name
    for name in re.findall(r"\]\(([^)]*\.md)\)", text):
        assert (page.parent / name).exists(), name


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_every_algorithm_is_documented_and_has_a_recipe(kind: str, name: str) -> None:
    table = (ROOT / "docs/algorithms/README.md").read_text(encoding="utf-8")
    assert re.search(rf"[ |`]{name}[, |`]", table)
    field = {"advantage": "advantage_estimator", "policy_loss": "policy_loss"}[kind]
    for kind_of_recipe in ("*-tiny.yaml", "qwen*.yaml"):
        recipes = [make_config(read_recipe(path)) for path in (ROOT / "examples/recipes").glob(kind_of_recipe)]
        assert name in {getattr(config, field) for config in recipes}, kind_of_recipe


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_a_run_of_every_tiny_recipe_that_it_names(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.stem == "README":
        recipes = {path.name for path in (ROOT / "examples/recipes").glob("*-tiny.yaml") if "data/sort" in path.read_text(encoding="utf-8")}
        assert {f"{name}-tiny.yaml" for name in re.findall(r"^\| (\w+) \| 0\.", text, re.MULTILINE)} == recipes
    else:
        assert set(re.findall(r"make learn ARGS='--only (\w+)'", text)) == set(learn_pages.RECIPE.findall(text)) != set()


def test_what_is_measured_becomes_a_row_for_each_seed() -> None:
    curves = [{"0": 0.25, "10": 0.5, "20": 0.75, "30": 0.95}, {"0": 0.375, "10": 0.5, "20": 0.625, "30": 0.75}]
    rows = {
        ("grpo", seed): {
            "algorithm": "grpo", "seed": seed, "before": curve["0"], "after": curve["30"], "steps": 30, "curve": curve,
            "steps_to_solved": None if seed else 30,
        }
        for seed, curve in enumerate(curves)
    }  # fmt: skip
    assert learn_pages.curve("grpo", rows).splitlines()[2:] == [
        "| seed | step 0 | 20 | 30 | 0.9 at step |",
        "|---|---|---|---|---|",
        "| 0 | 0.250 | 0.750 | 0.950 | 30 |",
        "| 1 | 0.375 | 0.625 | 0.750 | - |",
    ]
    assert learn_pages.table(rows).splitlines()[-1] == "| grpo | 0.250, 0.375 | 0.950, 0.750 | 30 | 30, - |"
    with pytest.raises(SystemExit, match="no rows of 'ppo': run benchmarks/learn.py --only ppo"):
        learn_pages.curve("ppo", rows)
