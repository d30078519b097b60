"""Writing a SavedModel whose bytes depend on the model alone, for `tf.saved_model.load`, TF Serving and converters."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.artifact import Signature, TensorSpec
from optkit.errors import StepError
from optkit.formats import savedmodel, tf_core
from optkit.plugin import need

_TRACED = re.compile(r"(__(?:inference|forward|backward)_.*?)_?(\d+)")


def write(
    out_dir: Path,
    call: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    signature: Signature,
    variables: Sequence[Any] = (),
    resources: Sequence[Any] = (),
) -> None:
    """A SavedModel in `out_dir` whose one signature, "serving_default", is `call` on tensors by name.

    call: TensorFlow tensors by the signature's input names, to such by its output names; traced once, with dynamic
    dims open. variables: those of a loaded SavedModel that it calls, which TensorFlow does not see by itself, in an
    order that is the same every time. resources: what else must be kept with it (tables, assets). Raises StepError for
    an output of another type or number of axes than the signature says.
    """
    tf = tf_core.load()
    module = tf.Module()
    safe = _argument_names([spec.name for spec in signature.inputs])

    def serve(*tensors: Any) -> dict[str, Any]:
        made = call(dict(zip(safe, tensors, strict=True)))
        # An output that is an input, or another output, would otherwise lose its name.
        return {spec.name: tf.identity(made[spec.name]) for spec in signature.outputs}

    with tf_core.quiet():
        specs = [tensor_spec(tf, spec, safe[spec.name]) for spec in signature.inputs]
        traced = tf.function(serve, input_signature=specs, autograph=False).get_concrete_function()
        _check(traced, signature)
        module.parameters, module.resources = [*variables, *_read_by(traced)], list(resources)
        tf.saved_model.save(module, str(out_dir), signatures={savedmodel.DEFAULT: traced})
    settle(out_dir, signature, {argument: name for name, argument in safe.items() if argument != name})


def _read_by(traced: Any) -> list[Any]:
    """A function's variables in the order in which it was found to read them; TensorFlow keeps them in a set."""
    places = {id(tensor): place for place, tensor in enumerate(traced.captured_inputs)}
    return sorted(traced.variables, key=lambda variable: places.get(id(variable.handle), len(places)))


def tensor_spec(tf: Any, spec: TensorSpec, name: str | None = None) -> Any:
    """An input as TensorFlow describes it: dynamic axes open."""
    shape = None if spec.shape is None else [d if isinstance(d, int) else None for d in spec.shape]
    return tf.TensorSpec(shape, spec.dtype, name=name)


def _argument_names(names: Sequence[str]) -> dict[str, str]:
    """Per input a name that TensorFlow takes for an argument: its own where that will do."""
    made: dict[str, str] = {}
    for index, name in enumerate(names):
        if name == "self" or keyword.iskeyword(name):  # inputs are Python's keyword arguments there
            raise StepError(f"a SavedModel cannot have an input called {name!r}", subject=f"inputs.{name}",
                            hint="rename the model's input")  # fmt: skip
        plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)
        taken = name.lower() in {n.lower() for n in made.values()}
        made[name] = name if plain and not taken else f"optkit_input_{index}"
    return made


def _check(traced: Any, signature: Signature) -> None:
    for spec in signature.outputs:
        made = traced.structured_outputs[spec.name]
        rank = made.shape.rank
        if made.dtype.name != spec.dtype or (None not in (rank, spec.shape) and rank != len(spec.shape or ())):
            raise StepError(f"output {spec.name!r} came out as {made.dtype.name} with {rank} axes, not as {spec}",
                            subject=f"outputs.{spec.name}")  # fmt: skip


def settle(folder: Path, signature: Signature, names: Mapping[str, str] | None = None) -> None:
    """Make a SavedModel's bytes depend on its content alone, and put names of dims, order and layouts beside it.

    TensorFlow numbers functions by what the process did before, and adds a fingerprint with a random part, which
    loaders do without. names: what arguments are called in the file, to what callers will know them by.
    """
    protos = need("tensorflow.core.protobuf.saved_model_pb2", tf_core.DISTRIBUTION)
    path = folder / savedmodel.MAIN
    model = protos.SavedModel.FromString(path.read_bytes())
    numbers: dict[str, list[int]] = {}
    for graph in model.meta_graphs:
        for function in graph.graph_def.library.function:
            if found := _TRACED.fullmatch(function.signature.name):
                numbers.setdefault(found[1], []).append(int(found[2]))
    traced = {f"{base}_{n}": f"{base}_{place}" for base, every in numbers.items()
              for place, n in enumerate(sorted(every))}  # fmt: skip
    _replace(model, traced)
    for graph in model.meta_graphs:
        _replace(graph.object_graph_def, names or {})
        for name in names or {}:
            for definition in graph.signature_def.values():
                if name in definition.inputs:
                    definition.inputs[(names or {})[name]].CopyFrom(definition.inputs[name])
                    del definition.inputs[name]
        _settle_graph(graph.graph_def)
    path.write_bytes(model.SerializeToString(deterministic=True))
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    for part in ("assets", "variables"):  # TensorFlow makes them even where nothing goes in
        if (folder / part).is_dir() and not any((folder / part).iterdir()):
            (folder / part).rmdir()
    savedmodel.record(folder, signature)


def _settle_graph(graph: Any) -> None:
    """Functions in one order, without attributes that hold numbers of the process."""
    library = graph.library
    library.function.sort(key=lambda function: function.signature.name)
    library.gradient.sort(key=lambda gradient: gradient.function_name)
    for nodes in (graph.node, *(function.node_def for function in library.function)):
        for node in nodes:
            node.attr.pop("_gradient_op_type", None)
    for function in library.function:
        for argument in function.arg_attr.values():
            if argument.attr["_user_specified_name"].s.isdigit():  # of a captured variable: its place in memory
                argument.attr.pop("_user_specified_name")


def _replace(message: Any, names: Mapping[str, str]) -> None:
    """Every text in a message that is one of `names`, keys of maps among them, by what that stands for."""
    for field, value in message.ListFields():
        nested = field.message_type
        if nested is not None and nested.GetOptions().map_entry:
            _replace_in_map(value, nested.fields_by_name["value"], names)
        elif nested is not None:
            for inner in value if _repeated(field) else [value]:
                _replace(inner, names)
        elif field.type == field.TYPE_STRING:
            if _repeated(field):
                value[:] = [names.get(text, text) for text in value]
            elif value in names:
                setattr(message, field.name, names[value])


def _replace_in_map(entries: Any, kind: Any, names: Mapping[str, str]) -> None:
    for key in list(entries):
        new = names.get(key, key)
        if kind.message_type is not None:
            _replace(entries[key], names)
            if new != key:
                entries[new].CopyFrom(entries[key])
                del entries[key]
        elif new != key or kind.type == kind.TYPE_STRING:
            held = entries.pop(key)
            entries[new] = names.get(held, held) if kind.type == kind.TYPE_STRING else held


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
