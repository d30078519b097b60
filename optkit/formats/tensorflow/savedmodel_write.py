"""Writing a SavedModel whose bytes depend on the model alone, for `tf.saved_model.load`, TF Serving and converters."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.artifact import Signature, TensorSpec
from optkit.errors import StepError
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import savedmodel
from optkit.plugin import need

Call = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_NUMBERED = re.compile(r"(.*?)_(\d+)")
_STAND_IN = re.compile(r"(.*_)(\d+)(___redundant_placeholder\d+.*)")  # an argument that a loop's condition ignores


def write(
    out_dir: Path,
    call: Call,
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
    safe = argument_names([spec.name for spec in signature.inputs])
    save(out_dir, {savedmodel.DEFAULT: (call, signature)}, variables, resources)
    settle(out_dir, signature, {argument: name for name, argument in safe.items() if argument != name})


def save(
    folder: Path,
    functions: Mapping[str, tuple[Call, Signature]],
    variables: Sequence[Any] = (),
    resources: Sequence[Any] = (),
) -> None:
    """A SavedModel with a signature for each of some functions, as TensorFlow writes it; see `write`.

    Inputs have the names of `argument_names`.
    """
    tf = tf_core.load()
    module = tf.Module()
    with tf_core.quiet():
        traced = {key: _traced(tf, call, signature) for key, (call, signature) in functions.items()}
        read = [variable for function in traced.values() for variable in _read_by(function)]
        module.parameters, module.resources = [*variables, *read], list(resources)
        tf.saved_model.save(module, str(folder), signatures=traced)


def _traced(tf: Any, call: Call, signature: Signature) -> Any:
    safe = argument_names([spec.name for spec in signature.inputs])

    def serve(*tensors: Any) -> dict[str, Any]:
        made = call(dict(zip(safe, tensors, strict=True)))
        # An output that is an input, or another output, would otherwise lose its name.
        return {spec.name: tf.identity(made[spec.name]) for spec in signature.outputs}

    specs = [tensor_spec(tf, spec, safe[spec.name]) for spec in signature.inputs]
    traced = tf.function(serve, input_signature=specs, autograph=False).get_concrete_function()
    _check(traced, signature)
    return traced


def _read_by(traced: Any) -> list[Any]:
    """A function's variables in the order in which it was found to read them; TensorFlow keeps them in a set."""
    places = {id(tensor): place for place, tensor in enumerate(traced.captured_inputs)}
    return sorted(traced.variables, key=lambda variable: places.get(id(variable.handle), len(places)))


def tensor_spec(tf: Any, spec: TensorSpec, name: str | None = None) -> Any:
    """An input as TensorFlow describes it: dynamic axes open."""
    shape = None if spec.shape is None else [d if isinstance(d, int) else None for d in spec.shape]
    return tf.TensorSpec(shape, spec.dtype, name=name)


def argument_names(names: Sequence[str]) -> dict[str, str]:
    """Per input a name that TensorFlow takes for an argument: its own where that will do for all of them.

    TensorFlow passes inputs in the order of their names as Python would take them, which a stand-in has to keep. Raises
    StepError for a name that no caller could use, and for two that are the same to it.
    """
    taken: dict[str, str] = {}
    for name in names:
        if name == "self" or keyword.iskeyword(name):  # inputs are Python's keyword arguments there
            raise StepError(f"a SavedModel cannot have an input called {name!r}", subject=f"inputs.{name}",
                            hint="rename the model's input")  # fmt: skip
        bare = "".join(letter if letter.isalnum() else "_" for letter in name)
        other = taken.setdefault(bare if bare[:1].isalpha() else f"arg_{bare}", name)
        if other != name:
            raise StepError(f"the inputs {other!r} and {name!r} are one to TensorFlow", subject=f"inputs.{name}",
                            hint="rename one of the model's inputs")  # fmt: skip
    plain = all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) for name in names)
    if plain and len({name.lower() for name in names}) == len(names):
        return {name: name for name in names}
    places = {taken[bare]: place for place, bare in enumerate(sorted(taken))}
    return {name: f"optkit_input_{places[name]:04}" for name in names}


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
    _replace(model, _renumbered(f.signature.name for g in model.meta_graphs for f in g.graph_def.library.function))
    for graph in model.meta_graphs:
        _replace(graph.object_graph_def, lambda text: (names or {}).get(text, text))
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


def _renumbered(functions: Iterable[str]) -> Callable[[str], str]:
    """What a text becomes when functions are numbered by their order among those of the same name."""
    numbers: dict[str, list[str]] = {}
    for name in functions:
        if found := _NUMBERED.fullmatch(name):
            numbers.setdefault(found[1], []).append(found[2])
    places = {
        base: {n: str(place) for place, n in enumerate(sorted(every, key=int))} for base, every in numbers.items()
    }
    whole = {f"{base}_{n}": f"{base}_{place}" for base, every in places.items() for n, place in every.items()}
    single = {n: place for every in places.values() for n, place in every.items()}  # no two functions share a number

    def renamed(text: str) -> str:
        if "___redundant_placeholder" in text and (found := _STAND_IN.fullmatch(text)):
            return f"{found[1]}{single.get(found[2], found[2])}{found[3]}"
        return whole.get(text, text)

    return renamed


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


def _replace(message: Any, new: Callable[[str], str]) -> None:
    """Put `new` of it in place of every text in a message, keys of maps among them."""
    for field, value in message.ListFields():
        nested = field.message_type
        if nested is not None and nested.GetOptions().map_entry:
            _replace_in_map(value, nested.fields_by_name["value"], new)
        elif nested is not None:
            for inner in value if _repeated(field) else [value]:
                _replace(inner, new)
        elif field.type == field.TYPE_STRING:
            if _repeated(field):
                value[:] = [new(text) for text in value]
            else:
                setattr(message, field.name, new(value))


def _replace_in_map(entries: Any, kind: Any, new: Callable[[str], str]) -> None:
    for key in list(entries):
        name = new(key) if isinstance(key, str) else key
        if kind.message_type is not None:
            _replace(entries[key], new)
            if name != key:
                entries[name].CopyFrom(entries[key])
                del entries[key]
        else:
            held = entries.pop(key)
            entries[name] = new(held) if isinstance(held, str) else held


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
