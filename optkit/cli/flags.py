"""The flags a model needs that does not know its own inputs, found without importing or running any of its code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def example_flags(section: Mapping[str, Any]) -> str:
    """What to add for a recipe's `model:` section: `--input` and `--dim`, with the model's own names where they show.

    Raises SourceError for a Hugging Face folder whose config cannot be read.
    """
    if "huggingface" in section:
        from optkit.cli.guessing import of_folder

        inputs = [i.spec for i in of_folder(dict(section)).inputs]
        flags = [f"{i}" + (f"={i.range[0]:.0f}..{i.range[1]:.0f}" if i.range else "") for i in inputs]
        dims, note = list(dict.fromkeys(d for i in inputs for d in i.dynamic)), ""
    else:
        file, _, factory = str(section.get("torch", "")).rpartition(":")
        names = forward_names(Path(file), factory) if file.endswith(".py") else []
        flags = [f"{name}:float32[batch,3,224,224]" for name in names or ["NAME"]]
        dims, note = ["batch"], ", with the model's own dtypes and shapes"
    ranges = {"batch": "1:8:64"}
    words = [f"--input '{flag.replace(': ', ':').replace(', ', ',')}'" for flag in flags]
    words += [f"--dim {dim}={ranges.get(dim, '8:64:128')}" for dim in dims]
    return f"add {' '.join(words)}{note}"


def forward_names(file: Path, factory: str) -> list[str]:
    """The arguments of the model's `forward`, read from the source text; nothing is imported. [] when in doubt."""
    import ast

    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return []
    forwards = {
        item.name: [a.arg for a in method.args.args[1 : len(method.args.args) - len(method.args.defaults)]]
        for item in ast.walk(tree) if isinstance(item, ast.ClassDef)
        for method in item.body if isinstance(method, ast.FunctionDef) and method.name == "forward"
    }  # fmt: skip
    made = [
        node.func.id for item in ast.walk(tree) if isinstance(item, ast.FunctionDef) and item.name == factory
        for node in ast.walk(item) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]  # fmt: skip
    used = [name for name in dict.fromkeys([*made, factory]) if name in forwards]
    return forwards[used[0]] if len(used) == 1 else []
