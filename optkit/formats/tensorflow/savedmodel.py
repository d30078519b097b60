"""A SavedModel at rest, read from its bytes without TensorFlow: a folder with `saved_model.pb` and `variables/`.

An artifact's path is its `saved_model.pb`. What TensorFlow's own signature cannot hold (names of dims, the order of
inputs and outputs, layouts) lies in `assets.extra/optkit.json`, in the folder that the format keeps for such things and
that no loader reads. It counts only as long as it agrees with the signature.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optkit.artifact import Signature, TensorSpec
from optkit.errors import SourceError, did_you_mean
from optkit.formats.tensorflow.proto import MetaGraph, SignatureDef, read_saved_model

MAIN = "saved_model.pb"
RECORD = "assets.extra/optkit.json"
DEFAULT = "serving_default"
SERVE = "serve"
_HIDDEN = ("__saved_model_init_op", "__saved_model_train_op")
_STATEFUL = ("VarHandleOp", "VariableV2", "Variable")


def serving(path: Path) -> MetaGraph:
    """The graph that is there to be served. Raises SourceError, also where its weights were left behind."""
    graphs = read_saved_model(path, nodes=True)
    found = next((g for g in graphs if SERVE in g.tags), graphs[0] if len(graphs) == 1 else None)
    if found is None:
        tags = "; ".join(",".join(g.tags) or "no tag" for g in graphs)
        raise SourceError(f"none of the graphs in {path.parent} is tagged {SERVE!r}: {tags}", subject="model",
                          hint="export it for serving: tf.saved_model.save or model.export")  # fmt: skip
    index = path.parent / "variables/variables.index"
    if not index.is_file() and any(node.op in _STATEFUL for node in found.nodes):
        raise SourceError(
            f"{path.parent} lacks {index.relative_to(path.parent)}, without which its variables have no values",
            subject="model",
            hint="copy the whole folder; a SavedModel is saved_model.pb and variables/",
        )
    return found


def choose(path: Path, wanted: str | None = None) -> tuple[str, SignatureDef]:
    """The signature by that name, by default "serving_default", or the only one there is. Raises SourceError."""
    every = {n: s for n, s in serving(path).signatures.items() if n not in _HIDDEN}
    if wanted is not None:
        if wanted not in every:
            listed = ", ".join(every) or "none"
            raise SourceError(f"{path.parent} has no signature {wanted!r}; it has {listed}",
                              subject="model.signature", hint=did_you_mean(wanted, every) or _EXPORT)  # fmt: skip
        return wanted, every[wanted]
    if not every:
        raise SourceError(f"{path.parent} has no signature, so its inputs and outputs have no names",
                          subject="model", hint=_EXPORT)  # fmt: skip
    if DEFAULT not in every and len(every) > 1:
        raise SourceError(
            f"{path.parent} has {len(every)} signatures, none of them {DEFAULT!r}: {', '.join(every)}",
            subject="model",
            hint=f"choose one: model: {{savedmodel: {path.parent.name}, signature: {next(iter(every))}}}; "
            f"without a recipe --set model.signature={next(iter(every))}",
        )
    name = DEFAULT if DEFAULT in every else next(iter(every))
    return name, every[name]


_EXPORT = "export it with one: tf.saved_model.save(module, folder, signatures=function), or model.export(folder)"


def describe(path: Path, meta: Mapping[str, Any] | None = None) -> Signature:
    """What the signature takes and gives; `meta` may name it ("signature"). Raises SourceError."""
    name, found = choose(path, (meta or {}).get("signature"))
    told = Signature(
        tuple(port.spec(n) for n, port in sorted(found.inputs.items())),
        tuple(port.spec(n) for n, port in sorted(found.outputs.items())),
    )
    return (_recorded(path.parent, told) or told) if name == DEFAULT else told


def _recorded(folder: Path, told: Signature) -> Signature | None:
    """The signature that `record` wrote, or None where there is none or the file says otherwise."""
    try:
        kept = Signature.from_json(json.loads((folder / RECORD).read_text(encoding="utf-8"))["signature"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sides = ((kept.inputs, told.inputs), (kept.outputs, told.outputs))
    return kept if all(_agree(mine, theirs) for mine, theirs in sides) else None


def _agree(kept: tuple[TensorSpec, ...], told: tuple[TensorSpec, ...]) -> bool:
    by_name = {spec.name: spec for spec in told}
    return set(by_name) == {spec.name for spec in kept} and all(_same(spec, by_name[spec.name]) for spec in kept)


def _same(kept: TensorSpec, told: TensorSpec) -> bool:
    if kept.dtype != told.dtype or kept.shape is None or told.shape is None:
        return (kept.dtype, kept.shape) == (told.dtype, told.shape)
    return len(kept.shape) == len(told.shape) and all(
        mine == theirs or (isinstance(mine, str) and isinstance(theirs, str))
        for mine, theirs in zip(kept.shape, told.shape, strict=True)
    )


def record(folder: Path, signature: Signature) -> None:
    """Put names of dims, order and layouts beside a SavedModel whose default signature agrees with them."""
    path = folder / RECORD
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"signature": signature.to_json()}, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def files(path: Path) -> tuple[str, ...]:
    """All that belongs to the SavedModel of a `saved_model.pb`, relative to its folder; others' files are left out."""
    folder = path.parent
    inner = [p for part in ("variables", "assets", "assets.extra") for p in (folder / part).rglob("*") if p.is_file()]
    return (path.name, *sorted(p.relative_to(folder).as_posix() for p in inner))


def inspect(path: Path) -> dict[str, Any]:
    """JSON data about a SavedModel: signatures, operators (those of its functions too), tags, who wrote it."""
    graph = serving(path)
    operators = Counter(node.op for node in graph.nodes if node.op not in ("Const", "NoOp", "Placeholder"))
    return {
        "operators": dict(operators.most_common()),
        "signatures": [name for name in graph.signatures if name not in _HIDDEN],
        "tags": list(graph.tags),
        "tensorflow": graph.version,
        "variables": sum(node.op in _STATEFUL for node in graph.nodes),
    }
