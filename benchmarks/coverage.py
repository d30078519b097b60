"""What optkit converts: small models of many architectures, and the ONNX files that the onnx package is tested with.

Usage: python benchmarks/coverage.py [--only NAME ...] [--target T ...] [--jobs N] [--fresh]
       python benchmarks/coverage.py models     build each model, and see that its outputs depend on its inputs
Each subject goes to every target through optkit, checks included, in a process of its own, limited in time and memory.
What is done is kept under build/coverage/ and skipped the next time. Ends with a table of totals, and writes
benchmarks/coverage.md and build/coverage/coverage.json once every subject has a result.

A dim that a target refuses is made static, and the table says so: first all dims vary, then the batch alone, then none.
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
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage_table

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "coverage"
ZOO = HERE / "architectures" / "zoo.py"


@dataclass(frozen=True)
class Target:
    """Where subjects go. dims: those that may vary there; what is asked for first.

    torch, onnx: the step that makes it from a model of that kind. batched: its options where
    the batch varies.
    """

    title: str
    torch: Mapping[str, Any]
    onnx: Mapping[str, Any]
    dims: frozenset[str] = frozenset({"batch", "sequence"})
    batched: Mapping[str, Any] = field(default_factory=dict)


TARGETS: dict[str, Target] = {
    "onnx": Target("ONNX", {"to": "onnx"}, {"use": "onnx.simplify"}),
    "openvino": Target("OpenVINO", {"to": "openvino"}, {"to": "openvino"}),
    "tflite": Target("TFLite", {"to": "tflite"}, {"to": "tflite"}, frozenset({"batch"}), {"sizes": {"batch": [1]}}),
    "tensorrt": Target("TensorRT-RTX", {"to": "tensorrt", "on_target": True}, {"to": "tensorrt", "on_target": True}),
}
"""One line per target."""

INTRODUCTION = """\
# What optkit converts

Made by `python benchmarks/coverage.py`: small models of many architectures with random weights, and the ONNX files
that the onnx package is tested with. Each is converted by optkit and compared with its source, over every declared
size and on edge values.

*held*: converted, and the check held (TensorRT-RTX: the engine was built; its check needs a GPU). *refused*: optkit
said why not, and what to do. *failed*: anything else. Declared are a batch of 1 to 4, and for text a sequence of 4 to
32 (in TFLite 16); "fixed sequence" says that the target took it at one size alone. ONNX files have the sizes they come
with, and their way to ONNX is `onnx.simplify`.
"""

UNEXPLAINED = (
    "litert-torch failed", "torch.onnx failed", "torch.export cannot trace", "OpenVINO cannot convert the model",
    "OpenVINO failed to convert", "could not build the engine", "the torchscript exporter failed", "onnxsim failed",
)  # fmt: skip
"""An error that begins so passes on what a backend said: nobody is told what to do, so it counts as a failure."""


def outcome(step: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A step of a report as held, refused with a reason, or failed."""
    from optkit.reports.rows import broken, parity

    if step["status"] == "blocked":
        cause = outcome(steps[step["blocked_by"]], steps)
        return {**cause, "reason": f"{steps[step['blocked_by']]['pass']}: {cause['reason']}"}
    if step["status"] == "passed":
        return {"result": "held", "parity": parity(step)}
    if step["status"] == "deferred":
        return {"result": "held", "parity": "built"}
    if step["status"] == "failed":
        return {"result": "failed", "reason": next(iter(broken(step)), "its check did not hold")}
    return of_error(step["error"])


def of_error(error: Mapping[str, Any]) -> dict[str, str]:
    """An error of optkit as a refusal, if it says what is wrong and what to do, or else as a failure."""
    what = str(error["what"])
    vague = any(words in what for words in UNEXPLAINED) or error["class"] in ("StepCrashed", "StepTimeout")
    refused = bool(error["hint"]) and not vague and "the details hold" not in error["hint"]
    return {"result": "refused" if refused else "failed", "reason": what, "hint": str(error["hint"])}


def step(target: str, kind: str, vary: frozenset[str]) -> dict[str, Any]:
    """A recipe's step to a target, from a source of that kind."""
    options = TARGETS[target].batched if "batch" in vary else {}
    return {"id": target, "timeout": 600.0, **getattr(TARGETS[target], kind), **({"with": options} if options else {})}


def recipe(name: str, targets: Sequence[str], vary: frozenset[str]) -> dict[str, Any]:
    """The recipe that sends one subject to targets, with these dims dynamic."""
    sys.path.insert(0, str(ZOO.parent))
    import onnx_files
    from kinds import DIMS

    if name in onnx_files.names():
        path = onnx_files.prepared(name, BUILD / "onnx")
        source, kind = {"model": {"onnx": str(path)}, "inputs": onnx_files.inputs(path)}, "onnx"
        used: dict[str, Any] = {}
    else:
        from zoo import ZOO as architectures

        subject, kind = architectures[name], "torch"
        inputs = {
            key: {**spec, "shape": [DIMS[d]["opt"] if d in set(DIMS) - vary else d for d in spec["shape"]]}
            for key, spec in subject.inputs.items()
        }
        used = {dim: DIMS[dim] for dim in subject.dims if dim in vary}
        source = {"model": {"torch": f"{ZOO}:build", "kwargs": {"name": name}}, "inputs": inputs,
                  "outputs": list(subject.outputs)}  # fmt: skip
    return {
        "version": 1, "name": name, **source, "data": {"judge": {"random": 4}}, "check_on": "judge", "threads": 1,
        **({"dims": used} if used else {}),
        "steps": [step(target, kind, vary) for target in targets],
        "deliver": list(targets),
    }  # fmt: skip


def levels(dims: Sequence[str], targets: Sequence[str]) -> list[tuple[frozenset[str], list[str]]]:
    """Which dims vary for which targets, the most first: a target takes the first that it does not refuse."""
    tried: list[tuple[frozenset[str], list[str]]] = []
    for wish in (frozenset(dims), frozenset(dims) & {"batch"}, frozenset[str]()):
        these = [t for t in targets if wish <= TARGETS[t].dims or not wish]
        if these and wish not in [vary for vary, _ in tried]:
            tried.append((wish, these))
    return tried


def examine(name: str, targets: Sequence[str]) -> dict[str, Any]:
    """The results of one subject, by target."""
    import optkit
    from optkit.errors import OptkitError

    sys.path.insert(0, str(ZOO.parent))
    import onnx_files

    if name in onnx_files.names():
        family, dims = onnx_files.family(name), ()
    else:
        from zoo import ZOO as architectures

        family, dims = architectures[name].family, architectures[name].dims
    results: dict[str, Any] = {}
    for vary, these in levels(dims, targets):
        left = [t for t in these if results.get(t, {}).get("result") != "held"]
        if not left:
            continue
        with tempfile.TemporaryDirectory(prefix="optkit-coverage-") as folder:
            started = time.perf_counter()
            try:
                report = optkit.convert(recipe(name, left, vary), out=Path(folder) / "out", jobs=1,
                                        cache=Path(folder) / "cache", raise_on_failure=False)  # fmt: skip
                steps = {step["id"]: step for step in report.steps}
                found = {target: outcome(steps[target], steps) for target in left}
                seconds = {target: sum(v or 0 for v in steps[target]["seconds"].values()) for target in left}
            except OptkitError as error:
                found = dict.fromkeys(left, of_error(error.to_json()))
                seconds = dict.fromkeys(left, time.perf_counter() - started)
        for target in left:
            before = results.get(target, {}).get("before", [])
            if target in results:
                before = [*before, {k: v for k, v in results[target].items() if k != "before"}]
            mine = {**found[target], "dims": sorted(vary), "seconds": round(seconds[target], 1)}
            results[target] = {**mine, **({"before": before} if before else {})}
    return {"name": name, "family": family, "dims": list(dims), "targets": results}


# ------------------------------------------------------------------------------------------------ processes


def in_a_child(name: str, targets: Sequence[str], limits: argparse.Namespace) -> None:
    """Examine a subject in a process of its own, and keep what it found."""
    file = BUILD / f"{name}.json"
    before = json.loads(file.read_text()) if file.exists() and not limits.fresh else {"targets": {}}
    missing = [t for t in targets if t not in before["targets"]]
    if not missing:
        return
    made = BUILD / f"{name}.part"
    made.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "child",
        "--only",
        name,
        "--target",
        *missing,
        "--memory",
        str(limits.memory),
    ]
    with (BUILD / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(limits.timeout)
            reason = f"the process ended with exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reason = f"stopped after {limits.timeout} s"
    if made.exists():
        found = json.loads(made.read_text())
        made.unlink()
    else:
        found = {"name": name, "targets": {t: {"result": "failed", "reason": reason, "dims": []} for t in missing}}
    whole = {**before, **found, "targets": {**before["targets"], **found["targets"]}}
    file.write_text(json.dumps(whole, indent=1) + "\n")
    print(coverage_table.line(whole, TARGETS), flush=True)


def child(arguments: argparse.Namespace) -> None:
    """What the process of one subject does."""
    limit = arguments.memory * 2**30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # of each process; the workers inherit it
    found = examine(arguments.only[0], arguments.target)
    (BUILD / f"{arguments.only[0]}.part").write_text(json.dumps(found))


def names() -> list[str]:
    """Every subject."""
    sys.path.insert(0, str(ZOO.parent))
    import onnx_files
    from zoo import ZOO as architectures

    return [*architectures, *onnx_files.names()]


def models(wanted: Sequence[str]) -> int:
    """Build each model and print how much its outputs vary with its input; 1 if some hardly do."""
    sys.path.insert(0, str(ZOO.parent))
    import zoo

    dull = 0
    for name in wanted or zoo.ZOO:
        found = zoo.variation(name)
        dull += min(found.values()) < 1e-3
        print(f"{name:28}", "  ".join(f"{output} {value:.2g}" for output, value in found.items()), flush=True)
    return int(dull > 0)


def main() -> int:
    """Run what is asked for; print the totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["run", "models", "table", "child"], default="run")
    parser.add_argument("--only", nargs="+", default=[], help="subjects, by name")
    parser.add_argument("--target", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--jobs", type=int, default=1, help="subjects at a time")
    parser.add_argument("--fresh", action="store_true", help="do again what is done")
    parser.add_argument("--timeout", type=int, default=1200, help="seconds a subject may take")
    parser.add_argument("--memory", type=int, default=8, help="GiB a process may take")
    arguments = parser.parse_args()
    if arguments.what == "child":
        child(arguments)
        return 0
    if arguments.what == "models":
        return models(arguments.only)
    BUILD.mkdir(parents=True, exist_ok=True)
    known = names()
    for name in arguments.only:
        if name not in known:
            parser.error(f"there is no subject {name!r}; they are: {', '.join(known)}")
    if arguments.what == "run":
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda name: in_a_child(name, arguments.target, arguments), arguments.only or known))
    results = [json.loads(file.read_text()) for name in known if (file := BUILD / f"{name}.json").exists()]
    whole = HERE / "coverage.md" if len(results) == len(known) else None
    coverage_table.write(results, TARGETS, whole, BUILD, INTRODUCTION)
    return 0


if __name__ == "__main__":
    sys.exit(main())
