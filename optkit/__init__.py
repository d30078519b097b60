"""optkit: convert, optimise and quantise trained models, and prove every step.

Importing it loads no backend, prints nothing and configures no logging; names load what they need when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from optkit.api import Model, compare, convert, open_artifact, plan, verify
    from optkit.errors import CheckError, OptkitError
    from optkit.lints.linting import lint
    from optkit.recipe import load_recipe
    from optkit.report import Report
    from optkit.speed.benching import bench

_HOMES = {
    "Model": "api", "bench": "speed.benching", "compare": "api", "convert": "api", "lint": "lints.linting",
    "open_artifact": "api", "plan": "api", "verify": "api",
    "CheckError": "errors", "OptkitError": "errors", "load_recipe": "recipe", "Report": "report",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'optkit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"optkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


__all__ = [
    "CheckError",
    "Model",
    "OptkitError",
    "Report",
    "__version__",
    "bench",
    "compare",
    "convert",
    "lint",
    "load_recipe",
    "open_artifact",
    "plan",
    "verify",
]
