"""A stand-in for Coral's edgetpu_compiler, which cannot be installed here: what it prints, and its file names, alone.

It compiles nothing. The file it writes is the one it is given with the graph's operators replaced by one custom
operator of the name the real compiler uses; STAND_IN says how it goes wrong. It serves to show that optkit reads the
report and does not trust the exit code, and shows nothing about any Edge TPU.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

HEAD = "Edge TPU Compiler version 16.0.384591198\n"
BANNER = """\
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in {took} ms.

Input model: {source}
Input size: 8.00KiB
Output model: {target}
Output size: 24.50KiB
On-chip memory used for caching model parameters: 1.25KiB
On-chip memory remaining for caching model parameters: 7.88MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: {total}
Operation log: {log}
"""
PARTLY = """
Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of the model will \
instead run on the CPU, which is slower.
Number of operations that will run on Edge TPU: {mapped}
Number of operations that will run on CPU: {left}
"""


def main() -> int:
    how = os.environ.get("STAND_IN", "")
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(HEAD, end="")
        return 0
    out, source = Path(arguments[arguments.index("-o") + 1]), Path(arguments[-1])
    print(HEAD)
    if how == "invalid":  # the real one says so with exit code 1 or 0, by its version
        print(f"Invalid model: {source}\nModel not quantized")
        return 0
    if how == "newer":
        print("ERROR: Didn't find op for builtin opcode 'CONV_2D' version '6'.\n", file=sys.stderr)
        return 0
    if how == "internal":
        print("Internal compiler error. Aborting!")
        return 0
    if how == "killed":
        return 9
    from optkit.formats.tflite import look as tflite_look
    from optkit.formats.tflite import model as tflite_model

    model = tflite_model.read(source)
    counts = Counter(name for name, _, _ in tflite_look.operations(model))
    rows = [[name, n, "Mapped to Edge TPU"] for name, n in sorted(counts.items())]
    if how == "partly":
        rows[0][2] = "More than one subgraph is not supported"
    if how == "none":
        rows = [[name, n, "Operation is working on an unsupported data type"] for name, n, _ in rows]
    target = out / f"{source.stem}_edgetpu.tflite"
    total = sum(counts.values()) + (how == "wrong")
    took, log = os.getpid(), target.with_suffix(".log")
    print(BANNER.format(source=source, target=target, total=total, took=took, log=log))
    mapped = sum(n for _, n, status in rows if status.startswith("Mapped"))
    if mapped < sum(counts.values()):
        print(PARTLY.format(mapped=mapped, left=sum(counts.values()) - mapped))
    if how != "silent":
        print(f"{'Operator':<30} {'Count':<10} Status\n")
        print("\n".join(f"{name:<30} {n:<10} {status}" for name, n, status in rows))
    print("Compilation child process completed within timeout period.\nCompilation succeeded! ")
    if how != "no file":
        _write(model, target, untouched=how == "untouched", other=how == "other ports")
    return 0


def _write(model: object, target: Path, untouched: bool, other: bool) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    graph = model.subgraphs[0]  # type: ignore[attr-defined]
    if not untouched:
        code = schema.OperatorCodeT(deprecatedBuiltinCode=32, builtinCode=32, version=1,
                                    customCode=b"edgetpu-custom-op")  # fmt: skip
        model.operatorCodes = [code]  # type: ignore[attr-defined]
        graph.operators = [schema.OperatorT(opcodeIndex=0, inputs=list(graph.inputs), outputs=list(graph.outputs))]
    if other:
        graph.outputs = [*graph.outputs, graph.inputs[0]]
    model.metadata, model.signatureDefs = [], []  # type: ignore[attr-defined]
    target.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))


if __name__ == "__main__":
    sys.exit(main())
