"""Which source files a user's Python file is made of: itself and what it imports from beside it. Imports nothing."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path


def find_top(name: str) -> ModuleSpec | None:
    """The spec of a module or package without dots in its name, not imported; None if there is none."""
    if name == "__main__":
        return None
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # loaded, and without a spec
        return None


def locate_module(name: str) -> Path | None:
    """The source file of a module by its dotted name, without importing it or its parents; None if there is none."""
    top, *rest = name.split(".")
    spec = find_top(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for place in spec.submodule_search_locations or ():
        path = Path(place, *rest)
        for candidate in (path / "__init__.py", path.with_name(path.name + ".py")):
            if candidate.is_file():
                return candidate
    return None


def local_files(start: Path, module: str | None = None) -> list[Path]:
    """`start`, then every file it imports, directly or through others, that is no installed package's; the rest sorted.

    Looked for first in the root folder of `start`: the folder it is in, or with the dotted name `module` of `start` the
    folder its top package is in; then where Python itself would find it (PYTHONPATH, an editable installation). Of a
    root where packages are installed only the top package itself counts. Imports made by name at run time
    (`importlib.import_module`) are not seen.
    """
    root, only = start.parent, None
    package: tuple[str, ...] = ()
    pending = [(start, package, root)]
    if module is not None:
        parts = module.split(".")
        is_package = start.name == "__init__.py"
        root = start.parents[len(parts) if is_package else len(parts) - 1]
        only = parts[0] if root.name in _INSTALLED_IN else None
        package = tuple(parts) if is_package else tuple(parts[:-1])
        pending = [*((*found, root) for found in _locate(root, tuple(parts))), (start, package, root)]
    seen: dict[Path, None] = {start: None}
    parsed: set[Path] = set()
    homes: dict[str, Path | None] = {}
    while pending:
        file, package, at = pending.pop()
        if file in parsed:
            continue
        parsed.add(file)
        seen.setdefault(file)
        for name in _imported(file, package):
            if only is not None and at == root and name[0] != only:
                continue
            found = list(_locate(at, name))
            if not found:
                if name[0] not in homes:
                    homes[name[0]] = project_root(name[0])
                if (other := homes[name[0]]) is not None:
                    pending += [(*inner, other) for inner in _locate(other, name)]
            pending += [(*inner, at) for inner in found]
    return [start, *sorted(path for path in seen if path != start)]


_INSTALLED_IN = ("site-packages", "dist-packages")


def project_root(top: str) -> Path | None:
    """The folder a top-level name would be imported from; None for the standard library and installed packages."""
    spec = None if top in sys.stdlib_module_names or top == "optkit" else find_top(top)
    if spec is None or (spec.origin is not None and not spec.origin.endswith(".py")):
        return None
    places = [Path(place).parent for place in spec.submodule_search_locations or ()]
    if not places and spec.origin:
        places = [Path(spec.origin).parent]
    return None if not places or set(_INSTALLED_IN) & set(places[0].parts) else places[0]


def _imported(file: Path, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Absolute names of what a file imports, split at the dots; names inside a module come too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the user's code, and shown when that code runs
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # reported, with its line, by whoever runs the file
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            inner = (*above, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield (*inner, alias.name)


def _locate(root: Path, name: tuple[str, ...]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The files under `root` that importing `name` runs, each with the package it belongs to."""
    folder = root
    for depth, part in enumerate(name):
        inner = folder / part
        if (inner / "__init__.py").is_file():
            yield inner / "__init__.py", name[: depth + 1]
        elif (file := folder / f"{part}.py").is_file():
            yield file, name[:depth]
            return
        elif not inner.is_dir() or (depth == 0 and _installed(part)):
            return
        folder = inner


def _installed(top: str) -> bool:
    """Whether a regular package or module of this name is installed: it wins over a plain folder of the same name."""
    if top in sys.stdlib_module_names:
        return True
    spec = importlib.machinery.PathFinder.find_spec(top)
    return spec is not None and spec.origin is not None
