"""TensorFlow to TFLite: TensorFlow's own converter, its failures as errors that name operators and nodes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from optkit.artifact import Artifact, Dim, Signature, TensorSpec
from optkit.errors import StepError
from optkit.formats.onnx.feeds import example_feeds
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import savedmodel_write
from optkit.formats.tensorflow import session as tf_session
from optkit.formats.tensorflow.freeze import Frozen, frozen
from optkit.formats.tensorflow.savedmodel_write import Call
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import session as tflite_session
from optkit.formats.tflite import sizes as tflite_sizes
from optkit.formats.tflite.model import Contract
from optkit.formats.tflite.noise import captured
from optkit.formats.tflite.sizes import TfliteOptions, disproved
from optkit.formats.torch.feeds import dynamic_dims
from optkit.plugin import Context

if TYPE_CHECKING:
    from optkit.plugin import Tensors

SHOWN = 3


class TfToTflite(TfliteOptions):
    """What TensorFlow's converter is asked for."""

    select_tf_ops: bool = Field(
        False,
        description="leave operators that TFLite lacks to TensorFlow's own kernels (Flex): such a file needs the Flex "
        "delegate, which LiteRT does not bring, so that its check has to be waived",
    )


def write(origin: Origin, signature: Signature, out_dir: Path, options: TfToTflite, context: Context) -> dict[str, Any]:
    """Writes `model.tflite`, tried out: it answers as TensorFlow does at min, opt and max of every dim.

    Weights stay float32. Returns notes: how dims vary, what the file itself takes and gives, operators, bytes. Raises
    StepError that names the operators TFLite lacks and their nodes, or the dim that cannot vary and what to declare.
    """
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype == "string":
            raise StepError(f"{spec.name!r} is a string, which LiteRT sessions of optkit do not take", subject="model",
                            hint="leave tokenisation outside of the model")  # fmt: skip
    dims = {n: dim for n, dim in context.dims.items() if any(n in spec.dynamic for spec in signature.inputs)}
    agreed = tflite_sizes.contract(signature.inputs, signature.outputs, dims, options)
    conversion = Conversion(origin, agreed, dims, context.scratch, options.select_tf_ops)
    context.progress("convert", None)
    final, how = tflite_sizes.converted(conversion, dynamic_dims(signature.inputs, dims), options, context)
    final.rename(out_dir / tflite_model.MAIN)
    held = tflite_look.inspect(out_dir / tflite_model.MAIN)
    return {"dims": how, "file": held["signatures"], "operators": held["operators"], "size_bytes": held["size_bytes"]}


def confirm(parent: Artifact, artifact: Artifact, options: TfToTflite, context: Context) -> list[str]:
    """Re-reads the file: names, dtypes, dims and layout as asked, float weights, no TensorFlow kernels unless asked."""
    if options.select_tf_ops:
        return []  # LiteRT cannot open it
    model = tflite_model.read(artifact.path)
    complaints = tflite_sizes.complaints_of(artifact, options, context)
    if flex := sorted({name for name, _, _ in tflite_look.operations(model) if name.startswith("Flex")}):
        complaints.append(f"{', '.join(flex)} need TensorFlow's own kernels")
    if quantised := tflite_look.counts(model)["weights"]:
        complaints.append(f"{quantised} weights are quantised, which nobody asked for")
    return complaints


@dataclass(frozen=True)
class Origin:
    """What is converted. call: TensorFlow tensors by input name, to such by output name; traces Python code or a graph.

    traced: it is a graph already, in which dims were left open. nodes: operators and names, for naming a failure.
    """

    call: Call
    variables: Sequence[Any] = ()
    resources: Sequence[Any] = ()
    traced: bool = False
    nodes: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Conversion:
    """An origin, what a session shall take and give, and a folder to work in.

    flex: leave what TFLite lacks to TensorFlow's own kernels.
    """

    origin: Origin
    agreed: Contract
    dims: Mapping[str, Dim]
    scratch: Path
    flex: bool

    def with_contract(self, agreed: Contract) -> Conversion:
        """The same, of another contract."""
        return replace(self, agreed=agreed)

    def convert(self, path: Path, *, sizes: Mapping[str, int], symbolic: bool = False) -> None:
        """Write the file: one signature for each combination of the contract's sizes.

        sizes: for dims that the contract does not fix. symbolic: leave these open instead. Raises StepError.
        """
        folder = self.scratch / "saved"
        shutil.rmtree(folder, ignore_errors=True)
        functions = {}
        for fixed in tflite_session.combinations(self.agreed):
            at = fixed if symbolic else {**sizes, **fixed}
            # TensorFlow's shapes end at the calls of a loaded model; in the graph without calls fixed ones go through.
            inline = at and self.origin.traced
            call = self._inlined(frozen(self._call, self._signature({}))) if inline else self._call
            functions[self.agreed.key(fixed)] = (call, self._signature(at))
        savedmodel_write.save(folder, functions, self.origin.variables, self.origin.resources)
        raw = path.with_name("converted.raw")
        raw.write_bytes(self._converted(folder, list(functions)))
        model = tflite_model.read(raw)
        given = savedmodel_write.argument_names([spec.name for spec in self.agreed.inputs])
        tflite_model.rename(model, self.agreed, {argument: name for name, argument in given.items()})
        _name_tensors(model)
        tflite_model.write(model, path, self.agreed)
        raw.unlink()

    def _signature(self, at: Mapping[str, int]) -> Signature:
        """What the file takes at some sizes, and gives."""

        def held(spec: TensorSpec) -> TensorSpec:
            return spec if spec.shape is None else replace(spec, shape=self.agreed.file_shape(spec, at))

        return Signature(tuple(map(held, self.agreed.inputs)), tuple(map(held, self.agreed.outputs)))

    def _call(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The function with channels last where the contract says so."""
        turned = self.agreed.channels_last
        given = {name: _moved(value, last=False) if name in turned else value for name, value in tensors.items()}
        made = self.origin.call(given)
        return {name: _moved(value, last=True) if name in turned else value for name, value in made.items()}

    def _inlined(self, graph: Frozen) -> Call:
        """The function as one graph of constants."""
        tf = tf_core.load()
        names = [spec.name for spec in self.agreed.inputs]

        def call(tensors: Mapping[str, Any]) -> dict[str, Any]:
            feeds = {port: tensors[name] for port, name in zip(graph.inputs, names, strict=True)}
            made = tf.graph_util.import_graph_def(graph.graph, input_map=feeds, return_elements=graph.outputs, name="")
            return {spec.name: tensor for spec, tensor in zip(self.agreed.outputs, made, strict=True)}

        return call

    def _converted(self, folder: Path, keys: list[str]) -> bytes:
        tf = tf_core.load()
        with captured() as said:
            try:
                with tf_session.loading():
                    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=keys)
                    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
                    if self.flex:
                        converter.target_spec.supported_ops.append(tf.lite.OpsSet.SELECT_TF_OPS)
                    return bytes(converter.convert())
            except Exception as error:  # ConverterError of a private module, and whatever its passes raise
                raise _failure(self.origin, error, said()) from error

    def disproved(self, path: Path, threads: int) -> str:
        """Where the file does not answer as the model does, over min, opt, max and an odd size of each dim; or ""."""
        if self.flex:
            return ""  # LiteRT has no such kernels; the check says so

        def ask(sizes: Mapping[str, int]) -> tuple[Tensors, Tensors]:
            tf = tf_core.load()
            feeds = example_feeds(self.agreed.inputs, sizes, seed=1)
            with tf.device("CPU:0"):
                made = self.origin.call({name: tf.constant(value) for name, value in feeds.items()})
            return feeds, {spec.name: made[spec.name].numpy() for spec in self.agreed.outputs}

        return disproved(path, self.agreed, self.dims, threads, ask)


def _moved(value: Any, *, last: bool) -> Any:
    """The tensor with its channels moved from axis 1 to the end, or back."""
    axes = list(range(value.shape.rank))
    return tf_core.load().transpose(value, [0, *axes[2:], 1] if last else [0, axes[-1], *axes[1:-1]])


def _name_tensors(model: Any) -> None:
    """Tensors without the numbers of functions in their names, each of which is another in every process."""
    taken: set[str] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            plain = re.sub(r"@__inference_\w+|(?<=_)(frozen|rewritten|specialized)_\d+", "",
                           tflite_model.text_of(tensor.name))  # fmt: skip
            name, count = plain, 0
            while name in taken:
                count += 1
                name = f"{plain}:{count}"
            taken.add(name)
            tensor.name = name.encode()


def _failure(origin: Origin, error: Exception, said: str) -> StepError:
    text = f"{error}\n{said}"
    lacking = dict.fromkeys(re.findall(r"error: 'tf\.(\w+)' op is neither", text))
    for listed in re.findall(r"(?:Flex|TF Select|Custom) ops: ([\w, ]+)", text):
        lacking |= dict.fromkeys(word.strip().removeprefix("Flex") for word in listed.split(","))
    if lacking:
        places = []
        for operator in lacking:
            found = list(dict.fromkeys(node for op, node in origin.nodes if op == operator))
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            places.append(f"{operator} (node {', '.join(found[:SHOWN])}{more})" if found else operator)
        return StepError(f"TFLite has no {'; '.join(places)}", subject="model", details=text,
                         hint="replace the operator in the model, or deliver ONNX or OpenVINO")  # fmt: skip
    if needs := re.search(r"'tf\.(\w+)' op requires (\w+) to be static", text):
        where = re.search(r'fused\["\w+:", "([^"@]+)', text)
        what = f"{needs[1]}{f' (node {where[1]})' if where else ''} needs sizes that are fixed"
        hint = "export the model with a fixed batch, or convert its Keras file" if origin.traced else "dynamic: sizes"
        return StepError(f"TensorFlow's converter: {what}", subject="model", details=text, hint=hint)
    return StepError(f"TensorFlow's converter failed: {tf_core.reason(error)[:300]}", subject="model", details=text,
                     hint="to: onnx, then to: tflite from that step, or deliver another format")  # fmt: skip
