"""From an ONNX file to a `ModelT` by onnx2tf, and the proof that the result answers as onnxruntime does.

onnx2tf rewrites the file it is given, drops files beside its output and, where it knows no operator, writes a custom
one that nothing runs, all with success. It works on a copy in scratch here, and what it wrote is looked at.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import Dim
from optkit.errors import StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import session as onnx_session
from optkit.formats.onnx.feeds import example_feeds
from optkit.formats.onnx.refusal import module_of
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import merge as tflite_merge
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import session as tflite_session
from optkit.formats.tflite.model import Contract
from optkit.formats.tflite.noise import captured
from optkit.formats.tflite.sizes import agree, disproved
from optkit.plugin import need

if TYPE_CHECKING:
    from optkit.plugin import Tensors

REFUSED = {"float16": "float32", "bfloat16": "float32", "string": "numbers", "complex64": "real numbers",
           "complex128": "real numbers"}  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """What is converted: an ONNX file, what a session shall take and give, an empty folder to work in."""

    source: Path
    agreed: Contract
    dims: Mapping[str, Dim]
    scratch: Path
    session: Any

    def with_contract(self, agreed: Contract) -> Conversion:
        """The same, of another contract."""
        return replace(self, agreed=agreed)

    def convert(self, path: Path, *, sizes: Mapping[str, int], symbolic: bool = False) -> None:
        """Write the file: one signature for each combination of the contract's sizes.

        sizes: for dims that the contract does not fix. symbolic: leave the ONNX file's own dims, and try the result at
        `sizes`. Raises StepError.
        """
        made = {}
        for fixed in tflite_session.combinations(self.agreed):
            at = {**sizes, **fixed}
            key = self.agreed.key(fixed)
            made[key] = self._one(path.with_name(f"{key}.raw"), at, symbolic)  # stays mapped, so each its own file
        whole = tflite_merge.merge(made)
        whole.metadata = []  # it allows accelerators to compute in float16, which nobody asked for
        tflite_model.rename(whole, self.agreed, self._names())
        tflite_model.write(whole, path, self.agreed)
        for key in made:
            path.with_name(f"{key}.raw").unlink()

    def _names(self) -> dict[str, str]:
        ends = {f"in_{number}": spec.name for number, spec in enumerate(self.agreed.inputs)}
        return ends | {f"out_{number}": spec.name for number, spec in enumerate(self.agreed.outputs)}

    def _one(self, raw: Path, at: Mapping[str, int], symbolic: bool) -> Any:
        """A model at some sizes, its outputs in the contract's layout."""
        model = onnx_model.load(self.source)
        plain = {theirs: ours for ours, theirs in self._names().items()}
        _rename_ends(model.graph, plain)
        twins = _take_twins(model.graph)
        if not symbolic:
            _fix(model, {plain[spec.name]: [at.get(d, d) if isinstance(d, str) else d for d in spec.shape or ()]
                         for spec in self.agreed.inputs})  # fmt: skip
        folder = self.scratch / "onnx2tf"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        copy = onnx_model.save(model, folder)
        kept = [plain[spec.name] for spec in self.agreed.inputs if spec.name not in self.agreed.channels_last]
        _run(copy, folder / "out", kept, self.source)
        written = folder / "out" / f"{copy.stem}_float32.tflite"
        if not written.is_file():
            raise StepError("onnx2tf wrote no float32 model", subject="model", hint="run onnx.simplify before it")
        shutil.copy(written, raw)
        found = tflite_model.read(raw)
        _no_custom(found, model)
        for name, source in twins.items():
            tflite_merge.copy_output(found, source, name)
        if twins:
            tflite_model.write(found, raw.with_suffix(".twins"), self.agreed)
            raw.with_suffix(".twins").replace(raw)
        self._turn_outputs(raw, found, at)
        return found

    def _turn_outputs(self, raw: Path, found: Any, at: Mapping[str, int]) -> None:
        """Put outputs into the contract's layout: onnx2tf leaves some with channels last, and does not say which."""
        import numpy as np

        sides = tflite_model.signatures(found)[tflite_model.DEFAULT][1]
        wide = [(f"out_{n}", spec) for n, spec in enumerate(self.agreed.outputs) if len(spec.shape or ()) > 2]
        if not wide:
            return
        wanted = self._answer(feeds := example_feeds(self.agreed.inputs, at, seed=1))
        got = _plain_run(raw, {f"in_{n}": self._turned(spec.name, feeds[spec.name])
                               for n, spec in enumerate(self.agreed.inputs)})  # fmt: skip
        for name, spec in wide:
            asked = wanted[spec.name]
            last = spec.name in self.agreed.channels_last
            is_last = not agree(got[name], asked) and agree(np.moveaxis(got[name], -1, 1), asked)
            if last != is_last:
                axes = list(range(len(sides[name].shape)))
                order = [0, *axes[2:], 1] if last else [0, axes[-1], *axes[1:-1]]
                tflite_merge.transpose_output(found, name, order)

    def _turned(self, name: str, value: Any) -> Any:
        import numpy as np

        return np.ascontiguousarray(np.moveaxis(value, 1, -1)) if name in self.agreed.channels_last else value

    def _answer(self, feeds: Tensors) -> Tensors:
        names = [spec.name for spec in self.agreed.outputs]
        with onnx_session.ort_errors(self.source.name):
            return dict(zip(names, self.session.run(names, feeds), strict=True))

    def disproved(self, path: Path, threads: int) -> str:
        """Where the file does not answer as the model does, over min, opt, max and an odd size of each dim; or ""."""

        def ask(sizes: Mapping[str, int]) -> tuple[Tensors, Tensors]:
            feeds = example_feeds(self.agreed.inputs, sizes, seed=1)
            return feeds, self._answer(feeds)

        return disproved(path, self.agreed, self.dims, threads, ask)


def _rename_ends(graph: Any, names: Mapping[str, str]) -> None:
    """Inputs and outputs under names that onnx2tf does not alter; an output that is an input gets a node of its own."""
    import onnx

    for output in graph.output:
        if output.name in {i.name for i in (*graph.input, *graph.initializer)}:
            given, output.name = output.name, names[output.name] + "_"
            graph.node.append(onnx.helper.make_node("Identity", [given], [output.name], name=f"give {given}"))
            names = {**names, output.name: output.name[:-1]}
    for node in onnx_model.all_nodes(graph):
        for side in (node.input, node.output):
            for index, name in enumerate(side):
                side[index] = names.get(name, name)
    for group in (graph.input, graph.output):
        for value in group:
            value.name = names.get(value.name, value.name)
    del graph.value_info[:]  # of other names, or other sizes


def _take_twins(graph: Any) -> dict[str, str]:
    """Take outputs that only repeat another out of the graph: which of which. onnx2tf leaves them without a value."""
    made = {name: node for node in graph.node for name in node.output}
    kept: dict[str, str] = {}
    twins: dict[str, str] = {}
    for output in list(graph.output):
        root = output.name
        while root in made and made[root].op_type == "Identity":
            root = made[root].input[0]
        if root in kept:
            twins[output.name] = kept[root]
            graph.output.remove(output)
        else:
            kept[root] = output.name
    return twins


def _fix(model: Any, shapes: Mapping[str, list[Any]]) -> None:
    """Write sizes into the inputs' dims; onnx2tf infers those of the rest."""
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            if isinstance(size, int):
                dim.dim_value = size
    names = {value.name for value in model.graph.output}
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = need("onnx").shape_inference.infer_shapes(model, data_prop=True)
    shaped = {value.name: value for value in inferred.graph.output if value.name in names}
    for value in model.graph.output:
        value.CopyFrom(shaped[value.name])


@contextlib.contextmanager
def _silent() -> Iterator[io.StringIO]:
    """What Python prints meanwhile, kept."""
    said = io.StringIO()
    with captured(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


def _run(copy: Path, out: Path, kept: list[str], source: Path) -> None:
    """Have onnx2tf convert `copy`, which it may change. Raises StepError that names the node."""
    onnx2tf = need("onnx2tf")
    try:
        with _silent() as said:
            onnx2tf.convert(
                input_onnx_file_path=str(copy), output_folder_path=str(out), tflite_backend="flatbuffer_direct",
                not_use_onnxsim=True, not_use_opname_auto_generate=True, output_signaturedefs=True,
                copy_onnx_input_output_names_to_tflite=True, keep_shape_absolutely_input_names=kept or None,
                # TFLite's own recurrent operators keep their state from one call to the next.
                enable_rnn_unroll=True, non_verbose=True, verbosity="error",
            )  # fmt: skip
    except (Exception, SystemExit) as error:  # it raises its own classes, numpy's and onnx's, and ends the process too
        raise _failure(error, said.getvalue(), source) from error


def _failure(error: BaseException, said: str, source: Path) -> StepError:
    chain, at = [], error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__  # type: ignore[assignment]
    told = next((e for e in chain if getattr(e, "node_name", "") or getattr(e, "node_op", "")), chain[-1])
    name, kind = getattr(told, "node_name", ""), getattr(told, "node_op", "")
    why = next((line.strip() for line in str(told).splitlines() if line.strip()), type(told).__name__)
    node = next((n for n in onnx_model.all_nodes(onnx_model.load(source, weights=False).graph) if n.name == name), None)
    module = module_of(node) if node is not None else ""
    where = f" at {kind or 'node'} ({name})" if name else ""
    details = "\n".join([*(f"{type(e).__name__}: {e}" for e in chain), said[-4000:]])
    return StepError(f"onnx2tf failed{where}: {why}" + (f", used in {module}" if module else ""), subject="model",
                     details=details, hint="run onnx.simplify before it, replace the operator in the model, or deliver "
                     "ONNX or OpenVINO instead")  # fmt: skip


def _no_custom(found: Any, model: Any) -> None:
    """Raises StepError where onnx2tf wrote an operator that no TFLite runtime has."""
    builtin = {name.upper() for name in vars(_operators()) if not name.startswith("_")}
    for name, _, _ in tflite_look.operations(found):
        if name in builtin:
            continue
        kind = name.removeprefix("ONNX_")
        nodes = [n for n in onnx_model.all_nodes(model.graph) if n.op_type.upper() == kind]
        what = f"TFLite has no operator for ONNX {onnx_model.operator(nodes[0]) if nodes else name}"
        if nodes:
            module = module_of(nodes[0])
            what += f" (node {nodes[0].name or nodes[0].output[0]})" + (f", used in {module}" if module else "")
        raise StepError(what, subject="model",
                        hint="replace the operator in the model, or deliver ONNX or OpenVINO instead")  # fmt: skip


def _operators() -> Any:
    return need("ai_edge_litert.schema_py_generated", "ai-edge-litert").BuiltinOperator


def _plain_run(path: Path, feeds: Tensors) -> Tensors:
    """What a file answers, in its own dtypes. Raises StepError where it cannot be resized to the feeds."""
    with captured():
        interpreter = tflite_model.interpreter(path)
        try:
            runner = interpreter.get_signature_runner(tflite_model.DEFAULT)
            held = runner.get_input_details()
            answer: Tensors = runner(**{name: value.astype(held[name]["dtype"]) for name, value in feeds.items()})
        except (ValueError, RuntimeError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise StepError(f"LiteRT cannot run it: {lines[0]}", details=str(error), subject="model",
                            hint="dynamic: sizes") from error  # fmt: skip
        return answer
