"""A plug-in of passes that fail in every way a backend can, each on purpose. All of them take and give `toy` models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optkit_toy import TOY, read, weights_of, write
from pydantic import Field

from optkit.artifact import Artifact
from optkit.plugin import Context, Options, Pass

Body = Callable[[Artifact, Path, Any, Context], Mapping[str, Any]]


class CrashyOptions(Options):
    text: str = Field("", description="what a pass prints, or where it leaves a process id")
    seconds: float = Field(0.0, description="how long it takes")


def segfault(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    print("about to touch a bad pointer", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def sigkill(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def exits(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    sys.exit(3)


def quits(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    os._exit(4)


def hang(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    """Says so all the time, as a backend with a spinner does."""
    while True:
        context.progress("still at it", None)
        time.sleep(0.01)


def deaf(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    """Ignores every signal that can be ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)
    return {}


def sleeps(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    if options.text:
        Path(options.text).write_text(str(os.getpid()), encoding="ascii")
    time.sleep(options.seconds)
    write(read(artifact.path), out_dir / TOY.main)
    return {}


def nan_notes(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    write(read(artifact.path), out_dir / TOY.main)
    return {"loss": float("nan")}


def array_notes(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    write(read(artifact.path), out_dir / TOY.main)
    return {"weights": weights_of(read(artifact.path))}


def no_notes(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Any:
    write(read(artifact.path), out_dir / TOY.main)


def odd_progress(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    """Progress in types that are no JSON, and far too much of it."""
    import numpy as np

    context.progress(np.str_("odd"), np.float32(0.5))
    context.progress(None, float("nan"))  # type: ignore[arg-type]
    for number in range(20_000):
        context.progress(f"part {number}", number / 20_000)
    write(read(artifact.path), out_dir / TOY.main)
    return {}


def raises(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    print("the last words of the backend", flush=True)
    raise RuntimeError("Unsupported: Frobnicate(x)\nsecond line")


def out_of_memory(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    raise MemoryError


def writes_nothing(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    (out_dir / "debug.txt").write_text("nothing to see", encoding="utf-8")
    return {}


def noisy(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    """A megabyte on either stream, from Python and from below it; then it dies."""
    for number in range(10_000):
        print(f"line {number} on stdout " + "x" * 40)
        print(f"line {number} on stderr " + "y" * 40, file=sys.stderr)
    os.write(1, b"\xff raw bytes on descriptor 1\n")
    os.write(2, b"the very last line\n")
    os._exit(5)


def reads_stdin(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    """A backend that asks: Proceed? [y/N]"""
    answer = sys.stdin.readline()
    write(read(artifact.path), out_dir / TOY.main)
    return {"answer": answer}


def orphans(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    """Leaves a child that holds on to every inherited descriptor, and dies."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    Path(options.text).write_text(str(pid), encoding="ascii")
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def children(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    """Leaves a child behind and succeeds."""
    child = subprocess.Popen(["sleep", "600"])
    child.returncode = 0  # keep Popen quiet about it
    Path(options.text).write_text(str(child.pid), encoding="ascii")
    write(read(artifact.path), out_dir / TOY.main)
    return {}


def edits_input(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    model = read(artifact.path)
    write(model, out_dir / TOY.main)
    write({**model, "extra": 1}, artifact.path)
    return {}


def links(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    (out_dir / TOY.main).symlink_to(artifact.path)
    return {}


def random(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    write({**read(artifact.path), "when": time.time_ns()}, out_dir / TOY.main)
    return {}


def wanders(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    write(read(artifact.path), out_dir / TOY.main)
    os.chdir(out_dir)
    return {}


def litters(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
    write(read(artifact.path), out_dir / TOY.main)
    Path("debug.log").write_text("", encoding="utf-8")
    return {}


def _changed(change: Callable[[dict[str, Any]], None]) -> Body:
    def run(artifact: Artifact, out_dir: Path, options: CrashyOptions, context: Context) -> Mapping[str, Any]:
        model = read(artifact.path)
        change(model)
        write(model, out_dir / TOY.main)
        return {}

    return run


def _weights(factor: float) -> Callable[[dict[str, Any]], None]:
    def change(model: dict[str, Any]) -> None:
        model["weights"] = (weights_of(model) * factor).tolist()

    return change


def _crashy(name: str, run: Body, **more: Any) -> Pass:
    return Pass(f"crashy.{name}", 1, "toy", "toy", "fails on purpose", run, options=CrashyOptions, **more)


SEGFAULT = _crashy("segfault", segfault)
SIGKILL = _crashy("sigkill", sigkill)
EXITS = _crashy("exits", exits)
QUITS = _crashy("quits", quits)
HANG = _crashy("hang", hang)
DEAF = _crashy("deaf", deaf)
SLEEPS = _crashy("sleeps", sleeps)
NAN_NOTES = _crashy("nan_notes", nan_notes)
ARRAY_NOTES = _crashy("array_notes", array_notes)
NO_NOTES = _crashy("no_notes", no_notes)
ODD_PROGRESS = _crashy("odd_progress", odd_progress)
RAISES = _crashy("raises", raises)
OUT_OF_MEMORY = _crashy("out_of_memory", out_of_memory)
WRITES_NOTHING = _crashy("writes_nothing", writes_nothing)
NOISY = _crashy("noisy", noisy)
READS_STDIN = _crashy("reads_stdin", reads_stdin)
RANDOM = _crashy("random", random)
WANDERS = _crashy("wanders", wanders)
LITTERS = _crashy("litters", litters)
ORPHANS = _crashy("orphans", orphans)
CHILDREN = _crashy("children", children)
EDITS_INPUT = _crashy("edits_input", edits_input)
LINKS = _crashy("links", links)
WRONG_NAMES = _crashy("wrong_names", _changed(lambda m: m["output"].update(name="z")))
WRONG_DTYPES = _crashy("wrong_dtypes", _changed(lambda m: m["output"].update(dtype="float64")))
STATIC_DIMS = _crashy("static_dims", _changed(lambda m: m["input"].update(shape=[8, *m["input"]["shape"][1:]])))
NAN_OUTPUT = _crashy("nan_output", _changed(_weights(float("nan"))))
SIGN_FLIP = _crashy("sign_flip", _changed(_weights(-1.0)))
DRIFTS = _crashy("drifts", _changed(_weights(1.01)))
SHRINKS = _crashy("shrinks", _changed(_weights(0.7)), fidelity="lossy", floating=True)
LAST_ROW = _crashy("last_row", _changed(lambda m: m.update(last=-1)))
UNKEPT = _crashy("unkept", sleeps, confirm=lambda parent, artifact, options, context: ["nothing was done", "at all"])
