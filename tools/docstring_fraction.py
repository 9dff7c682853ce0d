"""Prints what fraction of our modules, classes and functions has a docstring, and how many of the names of `lightrft` an example that runs.

Counted as interrogate does with private names left out: a leading underscore, or a function within one, is private.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lightrft

ROOT = Path(__file__).resolve().parent.parent
Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(node: Node, name: str) -> Iterator[tuple[str, Node]]:
    """A module or class, and what is public in it."""
    yield name, node
    if isinstance(node, (ast.Module, ast.ClassDef)):
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
                yield from public(child, f"{name}.{child.name}")


def found() -> dict[str, tuple[int, int]]:
    """For each kind: how many have a docstring, and how many there are."""
    counts = {"modules": [0, 0], "classes": [0, 0], "functions": [0, 0]}
    for path in sorted(ROOT.glob("packages/*/src/**/*.py")):
        for _, node in public(ast.parse(path.read_text(encoding="utf-8")), path.stem):
            kind = {ast.Module: "modules", ast.ClassDef: "classes"}.get(type(node), "functions")
            counts[kind][0] += ast.get_docstring(node) is not None
            counts[kind][1] += 1
    names = [name for name in lightrft.__all__ if name != "__version__"]
    counts["names of lightrft with an example"] = [
        sum("Example::" in (getattr(lightrft, name).__doc__ or "") for name in names),
        len(names),
    ]
    return {kind: (have, whole) for kind, (have, whole) in counts.items()}


def main() -> None:
    for kind, (have, whole) in found().items():
        print(f"docstrings: {have} of {whole} {kind}, {have / whole:.1%}")


if __name__ == "__main__":
    main()
