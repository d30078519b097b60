"""What optkit prunes, trains again and quantises: the architectures of coverage.py, made smaller in every way there is.

Usage: python benchmarks/shrinking.py [--only NAME ...] [--jobs N] [--fresh] [--timeout S] [--memory GIB]
Each subject goes every way in one run of a process of its own, checks included; the batch varies. What is done is kept
under build/shrinking/ and skipped the next time. Ends with a table of totals, and writes benchmarks/shrinking.md and
build/shrinking/coverage.json once every subject has a result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage_table
import yaml
from coverage import HERE, ZOO, of_error, outcome

BUILD = HERE.parent / "build" / "shrinking"
SEQUENCE = 16


@dataclass(frozen=True)
class Way:
    """A step of the recipe that counts, by what the tables call it."""

    title: str


WAYS = {
    "prune": Way("pruned, to ONNX"),
    "sparse": Way("2:4, to ONNX"),
    "distil": Way("pruned, then distilled"),
    "qat-onnx": Way("QAT, to ONNX"),
    "qat-openvino": Way("QAT, to OpenVINO"),
    "onnx-fp16": Way("ONNX float16"),
    "onnx-int8": Way("ONNX int8"),
    "onnx-budget": Way("ONNX int8 with a budget"),
    "onnx-int4": Way("ONNX 4-bit weights"),
    "openvino-int8": Way("OpenVINO int8"),
    "tflite-dynamic": Way("TFLite dynamic int8"),
    "tflite-int8": Way("TFLite int8"),
}

STEPS = """\
- {id: pruned, use: torch.prune, with: {remove_macs: 20%}, waive: what is made of it is judged}
- {id: prune, from: pruned, to: onnx}
- {id: zeros, use: torch.prune, with: {how: "2:4"}, waive: what is made of it is judged}
- {id: sparse, from: zeros, to: onnx}
- {id: distil, from: pruned, use: torch.distill, data: fit, waive: random weights,
   with: {epochs: 4, batch_size: 4, held_out: 25%, lr: 0.0003}}
- {id: aware, use: torch.qat, data: fit, check: ["cosine >= 0.9"],
   with: {epochs: 4, batch_size: 4, held_out: 25%, lr: 0.00001}}
- {id: qat-onnx, from: aware, to: onnx}
- {id: qat-openvino, from: aware, to: openvino}
- {id: onnx, to: onnx}
- {id: onnx-fp16, from: onnx, use: onnx.fp16, check: ["cosine >= 0.99"]}
- {id: onnx-int8, from: onnx, use: onnx.quantize, data: fit, check: ["cosine >= 0.9"]}
- {id: onnx-budget, from: onnx, use: onnx.quantize, with: {budget: ["cosine >= 0.95"]}, data: fit,
   check: ["cosine >= 0.9"]}
- {id: onnx-int4, from: onnx, use: onnx.compress_weights, with: {group_size: 16}, check: ["cosine >= 0.9"]}
- {id: openvino, from: onnx, to: openvino}
- {id: openvino-int8, from: openvino, use: openvino.quantize, data: fit, check: ["cosine >= 0.9"]}
- {id: tflite, to: tflite, with: {sizes: {batch: [1]}}}
- {id: tflite-dynamic, from: tflite, use: tflite.quantize, with: {mode: dynamic}, check: ["cosine >= 0.9"]}
- {id: tflite-int8, from: tflite, use: tflite.quantize, with: {mode: static}, data: fit, check: ["cosine >= 0.9"]}
"""

INTRODUCTION = """\
# What optkit makes smaller

Made by `python benchmarks/shrinking.py`: small models of many architectures with random weights, each pruned, trained
again and quantised in every way below, with 64 random samples to fit and 4 to judge, at a batch of 1 to 4 ("fixed
batch": of 2, where the model takes no others). A pruning takes 20 % of the multiply-accumulates.

*held*: made, read back, and judged. int8 and 4-bit weights are held to a cosine of 0.9 to the source, float16 to 0.99;
what is made of a pruned model is held to the pruned model's own answers. *refused*: optkit said why not, and what to
do; so does a training of four epochs from which the held-out samples gain nothing. *failed*: anything else. For int8
that is mostly accuracy: a network with random weights amplifies errors as no trained one does. *tuned*: int8 did not
hold as it comes, and did with `tune: true` and a budget of 0.95 on the fitting samples.
"""


TUNED = ("onnx-int8", "openvino-int8", "tflite-int8")
"""Ways that are gone once more where they do not hold, with `tune` and a budget."""


def recipe(name: str, tuned: Sequence[str] = (), varies: bool = True) -> dict[str, Any]:
    """The recipe that sends one subject every way; TFLite files have sequences of one length, so here all have.

    tuned: of TUNED, the only ways to go, each with its settings looked for. varies: whether the batch does.
    """
    sys.path.insert(0, str(ZOO.parent))
    from kinds import DIMS
    from zoo import ZOO as architectures

    subject = architectures[name]
    sizes: dict[Any, int] = {"sequence": SEQUENCE, **({} if varies else {"batch": DIMS["batch"]["opt"]})}
    inputs = {key: {**spec, "shape": [sizes.get(d, d) for d in spec["shape"]]} for key, spec in subject.inputs.items()}
    steps = [{"timeout": 300.0, **step} for step in yaml.safe_load(STEPS)]
    for step in steps if not varies else ():
        if "sizes" in step.get("with", {}):
            step["with"] = {}
    if tuned:
        needed = {"onnx", "openvino", "tflite", *tuned}
        steps = [{**step, "timeout": 900.0} for step in steps if step["id"] in needed]
        for step in steps:
            if step["id"] in tuned:
                step["with"] = {"budget": ["cosine >= 0.95"], "tune": True}
    return {
        "version": 1, "name": name, "model": {"torch": f"{ZOO}:build", "kwargs": {"name": name}}, "inputs": inputs,
        "outputs": list(subject.outputs), "data": {"fit": {"random": 64, "seed": 7}, "judge": {"random": 4}},
        "check_on": "judge", "threads": 1, "speed": False, "steps": steps, "deliver": list(tuned or WAYS),
        **({"dims": {"batch": DIMS["batch"]}} if varies and "batch" in subject.dims else {}),
    }  # fmt: skip


def examine(name: str) -> dict[str, Any]:
    """The results of one subject, by way."""
    import optkit
    from optkit.errors import OptkitError

    sys.path.insert(0, str(ZOO.parent))
    from zoo import ZOO as architectures

    def made(tuned: Sequence[str] = (), varies: bool = True) -> dict[str, dict[str, str]]:
        try:
            report = optkit.convert(recipe(name, tuned, varies), out=Path(folder) / "out", jobs=1,
                                    cache=Path(folder) / "cache", raise_on_failure=False)  # fmt: skip
        except OptkitError as error:
            return dict.fromkeys(tuned or WAYS, of_error(error.to_json()))
        steps = {step["id"]: step for step in report.steps}
        return {way: _result(steps[way], steps) for way in tuned or WAYS}

    with tempfile.TemporaryDirectory(prefix="optkit-shrinking-") as folder:
        found, varies = made(), True
        if sum(result["result"] == "refused" for result in found.values()) > len(WAYS) // 2:
            found, varies = made(varies=False), False  # most likely by the batch
        if wrong := [way for way in TUNED if found[way]["result"] == "failed"]:
            again = made(wrong, varies)
            found |= {way: {**again[way], "how": "tuned"} for way in wrong if again[way]["result"] == "held"}
    targets = {way: {**result, "dims": ["batch"] if varies else []} for way, result in found.items()}
    return {"name": name, "family": architectures[name].family, "dims": ["batch"], "targets": targets}


def _result(step: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {"result": "held", "parity": "waived"} if step["status"] == "waived" else outcome(step, steps)


def in_a_child(name: str, limits: argparse.Namespace) -> None:
    """Examine a subject in a process of its own, and keep what it found."""
    file = BUILD / f"{name}.json"
    if file.exists() and not limits.fresh:
        return
    file.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", __file__, "--child", name, "--memory", str(limits.memory)]
    with (BUILD / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            reason = f"the process ended with exit code {process.wait(limits.timeout)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reason = f"stopped after {limits.timeout} s"
    if not file.exists():
        targets = {way: {"result": "failed", "reason": reason, "dims": []} for way in WAYS}
        file.write_text(json.dumps({"name": name, "targets": targets}, indent=1) + "\n")
    print(coverage_table.line(json.loads(file.read_text()), WAYS), flush=True)


def main() -> int:
    """Run what is asked for; print the totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="subjects, by name")
    parser.add_argument("--jobs", type=int, default=1, help="subjects at a time")
    parser.add_argument("--fresh", action="store_true", help="do again what is done")
    parser.add_argument("--timeout", type=int, default=1200, help="seconds a subject may take")
    parser.add_argument("--memory", type=int, default=8, help="GiB a process may take")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        limit = arguments.memory * 2**30
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # of each process; the workers inherit it
        found = examine(arguments.child)
        (BUILD / f"{arguments.child}.json").write_text(json.dumps(found, indent=1) + "\n")
        return 0
    BUILD.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ZOO.parent))
    from zoo import ZOO as architectures

    for name in arguments.only:
        if name not in architectures:
            parser.error(f"there is no subject {name!r}; they are: {', '.join(architectures)}")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda name: in_a_child(name, arguments), arguments.only or architectures))
    results = [json.loads(file.read_text()) for name in architectures if (file := BUILD / f"{name}.json").exists()]
    whole = HERE / "shrinking.md" if len(results) == len(architectures) else None
    coverage_table.write(results, WAYS, whole, BUILD, INTRODUCTION)
    return 0


if __name__ == "__main__":
    sys.exit(main())
