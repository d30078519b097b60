"""Coral's edgetpu_compiler: found, run, and its report read. Its exit code says nothing."""

from __future__ import annotations

import functools
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.errors import StepError, StepTimeout, UnavailableError

NAME = "edgetpu_compiler"
MAPPED = "Mapped to Edge TPU"
_FAILED = re.compile(r"^(ERROR: .*|Invalid model: .*|Internal compiler error.*|Compilation failed.*|Model not quantized"
                     r"|Model could not be parsed|.*[Uu]nrecognized (?:flag|option).*)$", re.MULTILINE)  # fmt: skip
_ROW = re.compile(r"^(\S+)[ \t]+(\d+)[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """So many operators of a kind, and what became of them: `MAPPED`, or why they stay on the CPU."""

    operator: str
    count: int
    status: str


@dataclass(frozen=True)
class Report:
    """What the compiler says it did. memory: words of its own, such as "On-chip memory used ...": "1.25MiB"."""

    version: str
    subgraphs: int
    rows: tuple[Row, ...]
    memory: dict[str, str]

    @property
    def mapped(self) -> int:
        """Operators on the Edge TPU."""
        return sum(row.count for row in self.rows if row.status == MAPPED)

    @property
    def left(self) -> tuple[Row, ...]:
        """Those on the CPU, each with the reason."""
        return tuple(row for row in self.rows if row.status != MAPPED)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "subgraphs": self.subgraphs,
            "on_tpu": self.mapped,
            "on_cpu": sum(row.count for row in self.left),
            "operators": [{"operator": r.operator, "count": r.count, "status": r.status} for r in self.rows],
            "memory": self.memory,
        }


def find(known: str = "") -> str:
    """The compiler's path. Raises UnavailableError that says how to get it, and before that what is `known` already."""
    path = shutil.which(NAME)
    if path is None:
        here = (platform.system(), platform.machine())
        elsewhere = "" if here == ("Linux", "x86_64") else f"; this machine is {' '.join(here)}"
        raise UnavailableError(
            f"{known}{NAME} is not on PATH",
            hint="install Coral's Debian package edgetpu-compiler (Linux on x86-64 alone), as its page on the Edge TPU "
            f"Compiler says{elsewhere}",
        )
    return path


@functools.cache
def version(path: str) -> str:
    """What the compiler calls its version; "" where it does not say."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False,
                              stdin=subprocess.DEVNULL, errors="replace")  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"Edge TPU Compiler version (\S+)", done.stdout + done.stderr)
    return found[1] if found else ""


def compile_file(path: str, model: Path, out: Path, extra: Sequence[str], seconds: float) -> tuple[Path, Report]:
    """The compiled file and the report about it.

    Raises StepError where the compiler says that it failed, wrote no file or put no operator on the Edge TPU, and where
    its report cannot be read; StepTimeout where it did not end.
    """
    try:
        done = subprocess.run(
            [path, "-s", "-o", str(out), *extra, str(model)], capture_output=True, text=True, errors="replace",
            timeout=seconds, check=False, stdin=subprocess.DEVNULL, cwd=out,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise StepTimeout(
            f"{NAME} did not end within {seconds:g} s", hint="with: {search_delegate: true} finds a part that compiles"
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"{NAME} cannot be started: {error.strerror}", hint=f"reinstall it, or remove {path}"
        ) from error
    said = f"{done.stdout}\n{done.stderr}".strip()
    if faults := [line.strip() for line in _FAILED.findall(said)]:
        raise StepError(f"{NAME} failed: {'; '.join(dict.fromkeys(faults))}", details=said, hint=_remedy(faults))
    if done.returncode:
        last = said.splitlines()[-1] if said else "it said nothing"
        raise StepError(f"{NAME} ended with exit code {done.returncode}: {last}", details=said,
                        hint="run it by hand on the quantised file; its log says more")  # fmt: skip
    made = out / f"{model.stem}_edgetpu.tflite"
    if not made.is_file() or not made.stat().st_size:
        raise StepError(f"{NAME} wrote no {made.name}, though it ended with exit code 0", details=said,
                        hint="run it by hand on the quantised file; its log says more")  # fmt: skip
    return made, parse(said)


def parse(said: str) -> Report:
    """What the compiler printed, as data. Raises StepError where that is no report, or one that contradicts itself."""
    named = re.search(r"Edge TPU Compiler version (\S+)", said)
    table = re.split(r"^Operator[ \t]+Count[ \t]+Status[ \t]*$", said, maxsplit=1, flags=re.MULTILINE)
    rows = tuple(Row(m[1], int(m[2]), m[3]) for m in _ROW.finditer(table[1])) if len(table) == 2 else ()
    if named is None or not rows:
        raise StepError(f"{NAME} printed no table of operators", details=said,
                        hint="optkit knows the output of versions 14 to 16; install one of these")  # fmt: skip
    memory = re.findall(r"^(O(?:n|ff)-chip memory [^:\n]*): *(\S+)", said, re.MULTILINE)
    report = Report(named[1], _number(said, "Number of Edge TPU subgraphs") or 0, rows, dict(memory))
    counted = sum(row.count for row in rows)
    for words, have in (
        ("Total number of operations", counted),
        ("Number of operations that will run on Edge TPU", report.mapped),
        ("Number of operations that will run on CPU", counted - report.mapped),
    ):
        told = _number(said, words)
        if told is not None and told != have:
            raise StepError(f"{NAME} contradicts itself: {words.lower()} is {told}, and its table has {have}",
                            details=said, hint="run it by hand on the quantised file")  # fmt: skip
    if not report.mapped:
        reasons = "; ".join(f"{row.operator}: {row.status}" for row in rows[:3])
        raise StepError(f"{NAME} put none of {counted} operators on the Edge TPU ({reasons})", details=said,
                        hint="optkit lint MODEL.tflite --for edgetpu names what is in the way")  # fmt: skip
    return report


def _number(said: str, words: str) -> int | None:
    found = re.search(rf"^{words}: *(\d+)", said, re.MULTILINE)
    return int(found[1]) if found else None


def _remedy(faults: Sequence[str]) -> str:
    text = " ".join(faults)
    if "version '" in text:
        return "an operator is newer than the compiler: convert the model with an older converter"
    if "not quantized" in text:
        return "quantise it with tflite.quantize and with: {mode: static, io: int8}"
    if "Internal compiler error" in text or "large activation" in text:
        return "with: {search_delegate: true} leaves out what it stumbles over; or take smaller inputs"
    return "run it by hand on the quantised file; its log says more"
