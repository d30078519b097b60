"""What importing optkit costs, and who may import whom."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import optkit

PACKAGE = Path(optkit.__file__).parent
RECIPES = PACKAGE.parent / "recipes"
BACKENDS = {"torch", "onnx", "onnxruntime", "onnxscript", "onnxsim", "openvino", "nncf", "transformers", "tokenizers",
            "safetensors", "tensorrt_rtx", "PIL", "sklearn", "google"}  # fmt: skip


def loaded_by(code: str) -> tuple[set[str], str]:
    """The top packages that are loaded after some code ran in a fresh interpreter, and what it printed."""
    tail = "\nimport json, sys; print('\\n' + json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + tail], capture_output=True, text=True, check=True
    )
    out, _, names = done.stdout.rstrip().rpartition("\n")
    return set(json.loads(names)), out.strip() + done.stderr


@pytest.mark.parametrize("code", ["import optkit", "import optkit, optkit.errors; optkit.__version__; dir(optkit)"])
def test_importing_optkit_loads_next_to_nothing(code: str) -> None:
    loaded, printed = loaded_by(code)
    assert not loaded & (BACKENDS | {"numpy", "pydantic", "yaml", "click", "rich", "logging", "asyncio"})
    assert printed == ""


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_planning_loads_no_backend_and_no_numpy(name: str) -> None:
    code = "from optkit.recipe import load_recipe\nfrom optkit.planning import make_plan\n"
    loaded, printed = loaded_by(f"{code}make_plan(load_recipe({str(RECIPES / name)!r}))")
    assert "pydantic" in loaded
    assert not loaded & (BACKENDS | {"numpy", "rich", "click"})
    assert printed == ""


@pytest.mark.parametrize(
    "module",
    [
        "optkit.api",
        "optkit.execute",
        "optkit.worker",
        "optkit.tasks",
        "optkit.running.pool",
        "optkit.running.judging",
        "optkit.delivery.deliver",
        "optkit.spec.schema",
        "optkit.report",
        "optkit.registry",
        "optkit.testing",
        "optkit.parity.cases",
        "optkit.parity.tape",
        "optkit.reports.markdown",
    ],
)
def test_no_module_of_the_run_loads_a_backend(module: str) -> None:
    loaded, printed = loaded_by(f"import {module}")
    assert not loaded & (BACKENDS | {"numpy"})
    assert printed == ""


def test_every_public_name_is_there() -> None:
    loaded, _ = loaded_by("import optkit\nfor name in optkit.__all__: getattr(optkit, name)")
    assert set(optkit.__all__) <= set(dir(optkit))
    assert not loaded & BACKENDS
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        optkit.nothing  # noqa: B018


# --- who imports whom, read from the source


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names a file imports when it is imported itself: not inside functions, not for type checkers alone."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def everywhere(path: Path) -> Iterator[str]:
    """Dotted names a file imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_in(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((PACKAGE / folder).rglob("*.py"))]


# Modules whose whole purpose is that importing them loads a backend: an idle worker does it ahead of time.
PLUGINS = [path for path in files_in("passes", "runners", "formats") if path.parent.name != "warm"]
# parity, scoring: a pass that works towards a bound measures as its check does.
ALLOWED = (
    "pydantic.Field", "optkit.plugin", "optkit.errors", "optkit.artifact", "optkit.formats", "optkit.parity",
    "optkit.scoring", "optkit.spec.metricspec", "optkit.data.batch", "optkit.models.protobuf",
)  # fmt: skip
LATE = ("torch_pruning",)
"""Folders whose files are imported inside functions alone; numpy, which the base install has, may be on top of them."""


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_pass_or_runner_imports_its_backend_inside_functions(path: Path) -> None:
    late = path.parent.name in LATE
    for name in imports_of(path):
        known = (
            name.startswith(("numpy", *ALLOWED) if late else ALLOWED)
            or name.partition(".")[0] in sys.stdlib_module_names
        )
        # What shapes a pass's options comes from pydantic itself.
        assert known or name.startswith("pydantic."), f"{path.name} imports {name} at module level"
        assert not name.startswith("optkit.formats.warm"), f"{path.name} warms up for everybody"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_passes_and_runners_stay_apart(path: Path) -> None:
    for name in everywhere(path):
        assert not name.startswith(("optkit.passes", "optkit.runners")), f"{path.name} imports {name}"
        assert not name.startswith("optkit.") or name.startswith(ALLOWED), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", files_in("passes", "runners"), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_file_ends_in_its_one_constant(path: Path) -> None:
    if path.stem == "__init__":
        assert not [n for n in ast.parse(path.read_text(encoding="utf-8")).body if not isinstance(n, ast.Expr)]
        return
    last = ast.parse(path.read_text(encoding="utf-8")).body[-1]
    assert isinstance(last, ast.Assign)
    assert ast.unparse(last.targets[0]) == ("PASS" if path.parent.name == "passes" else "RUNNER")


@pytest.mark.parametrize(
    "path",
    [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ("passes", "runners", "formats")],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_nothing_else_imports_a_backend_when_it_is_imported(path: Path) -> None:
    named = {name.partition(".")[0] for name in imports_of(path)}
    assert not named & BACKENDS


def test_only_the_console_draws() -> None:
    run = {
        "api", "cache", "checking", "deliver", "dispatch", "execute", "groundwork", "judging", "keys", "limits",
        "making", "planning", "pool", "recipe", "report", "report_making", "runstate", "tasks", "timing", "worker",
    }  # fmt: skip
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "cli" and path.name != "__main__.py":
            drawing = ("rich", "click", "optkit.cli") if path.stem in run else ("rich", "click")
            found = [name for name in everywhere(path) if name.startswith(drawing)]
            assert not found, f"{path.relative_to(PACKAGE)} imports {found[0]}"
