"""The process in which onnxsim runs: `python -P simplify_child.py MODEL RESULT OPTIONS`.

OPTIONS is JSON, keyword arguments of `onnxsim.simplify`. Run by path, so that nothing of optkit is imported.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import sys
import types
from typing import Any


def main(model: str, result: str, options: str) -> None:
    """Simplify one model file into another."""
    simplify = _load()
    done, ok = simplify(model, output_path=result, **json.loads(options))
    if not ok:
        raise RuntimeError("onnxsim's own check refused the result")
    if not done.graph.output:
        raise RuntimeError("onnxsim wrote a model without outputs")


def _load() -> Any:
    # onnxsim's __init__ imports every quantiser it has, and through one of them torch, which takes two seconds;
    # simplifying needs one of its modules, and neither torch nor sympy.
    absent: Any = None
    sys.modules.setdefault("torch", absent)
    sys.modules.setdefault("sympy", absent)
    spec = importlib.machinery.PathFinder.find_spec("onnxsim")
    if spec is not None and spec.submodule_search_locations is not None:
        package = types.ModuleType("onnxsim")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["onnxsim"] = package
        try:
            return importlib.import_module("onnxsim.onnx_simplifier").simplify
        except ImportError:
            for name in [n for n in sys.modules if n.partition(".")[0] == "onnxsim"]:
                del sys.modules[name]
    return importlib.import_module("onnxsim").simplify


if __name__ == "__main__":
    main(*sys.argv[1:])
