"""A node of an ONNX graph that some runtime refuses, and the torch module that it came from."""

from __future__ import annotations

import ast
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Refusal:
    """One thing a runtime refuses: the node and its operator ("" for the graph as a whole), why, and one thing to try.

    module: the torch module that the node came from, "" where the file does not say.
    """

    node: str
    operator: str
    what: str
    hint: str
    module: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def refused(node: Any, what: str, hint: str) -> Refusal:
    """A refusal of one node."""
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    return Refusal(node.name or node.output[0], f"{domain}{node.op_type}", what, hint, module_of(node))


def module_of(node: Any) -> str:
    """The path of the torch module a node came from ("encoder.layer.0"), as exporters note it; "" without a note."""
    notes = {note.key: note.value for note in node.metadata_props}
    if scopes := notes.get("pkg.torch.onnx.name_scopes"):
        try:
            named = [str(scope) for scope in ast.literal_eval(scopes)]
        except (ValueError, SyntaxError, TypeError):
            named = []
        return next((scope for scope in reversed(named[:-1]) if scope), "")  # the last is the operation itself
    # "": torch.nn.Module/stem: Sequential/stem.1: Conv2d/conv2d: aten.conv2d.default, or optkit's own "stem.1"
    parts = [part.partition(":")[0].strip() for part in notes.get("namespace", "").split("/")]
    return parts[-1] if len(parts) == 1 else next((part for part in reversed(parts[:-1]) if part), "")
