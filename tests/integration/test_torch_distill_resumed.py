"""torch.distill killed, stopped, or on a disk that is full: it goes on, bit for bit, from its last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import distill_kit as kit
import pytest
import torch
from distill_kit import QUICK, Turn, losses

from optkit.artifact import Artifact
from optkit.formats.torch_training import checkpoint as torch_checkpoint
from optkit.passes.torch_distill import PASS


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return kit.source(tmp_path_factory.mktemp("teacher"))


CHILD = """
import sys
from pathlib import Path
import distill_kit as kit
from optkit.spec.metricspec import metric_of
from optkit.passes import torch_prune, torch_qat, torch_train
from optkit.passes.torch_distill import PASS
from optkit.scoring.held import HeldOut
base, name, options = Path(sys.argv[1]), sys.argv[2], eval(sys.argv[3])
teacher = kit.source(base / f"teacher-{name}")
kit.Turn(PASS, teacher, base / name, options, kept=base / "kept").run()
"""


def child(base: Path, name: str, options: dict[str, Any]) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(base), name, repr(options)], env={**os.environ, "PYTHONPATH": paths}
    )


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(teacher: Artifact, tmp_path: Path) -> None:
    options = losses(
        {"kind": "kl"}, {"kind": "hidden", "layers": {"second": "second"}}, epochs=15, checkpoint_seconds=0
    )
    (tmp_path / "kept").mkdir()
    whole = Turn(PASS, teacher, tmp_path / "whole", options)
    notes = whole.run()
    running = child(tmp_path, "killed", options)
    until = time.monotonic() + 120
    while time.monotonic() < until and running.poll() is None:
        state = torch_checkpoint.load(tmp_path / "kept")
        if state is not None and state["state"]["step"] >= 7:  # in the second epoch
            break
        time.sleep(0.01)
    assert running.poll() is None, "it was to be killed while it ran"
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    state = torch_checkpoint.load(tmp_path / "kept")
    assert state is not None
    seen = state["state"]["step"]
    assert 7 <= seen < notes["steps"]
    rest = Turn(PASS, teacher, tmp_path / "rest", options, kept=tmp_path / "kept")
    after = rest.run()
    assert after["resumed_at_step"] == seen
    assert rest.weights == whole.weights
    assert after["held_out_loss"] == notes["held_out_loss"]
    assert after["epochs"] == notes["epochs"]


@pytest.mark.parametrize("stops", [(1, 2, 3), (6, 7), (11, 12, 13, 35, 36)], ids=str)
def test_stopped_again_and_again(teacher: Artifact, tmp_path: Path, stops: tuple[int, ...]) -> None:
    """At the first step, at both sides of an epoch's end, and at the last one."""
    options = {**QUICK, "checkpoint_seconds": 0, "optimizer": "sgd"}
    (tmp_path / "kept").mkdir()
    whole = Turn(PASS, teacher, tmp_path / "whole", options)
    whole.run()
    for stop in stops:
        turn = Turn(PASS, teacher, tmp_path / f"to-{stop}", options, kept=tmp_path / "kept")

        def tell(text: str, fraction: float | None, stop: int = stop) -> None:
            if fraction is not None and round(fraction * 36) >= stop:
                raise KeyboardInterrupt

        turn.context = replace(turn.context, progress=tell)
        with pytest.raises(KeyboardInterrupt):
            turn.run()
    rest = Turn(PASS, teacher, tmp_path / "rest", options, kept=tmp_path / "kept")
    rest.run()
    assert rest.weights == whole.weights


def test_what_is_finished_is_not_trained_again(teacher: Artifact, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    one = Turn(PASS, teacher, tmp_path / "one", QUICK, kept=tmp_path / "kept")
    two = Turn(PASS, teacher, tmp_path / "two", QUICK, kept=tmp_path / "kept")
    assert one.run()["steps"] == two.run()["resumed_at_step"] == 36
    assert one.weights == two.weights


def test_a_damaged_checkpoint_costs_time_alone(teacher: Artifact, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / torch_checkpoint.FILE).write_bytes(b"PK half a file")
    one = Turn(PASS, teacher, tmp_path / "one", QUICK, kept=tmp_path / "kept")
    assert "resumed_at_step" not in one.run()


def test_a_full_disk_is_an_os_error_with_its_place(tmp_path: Path) -> None:
    torch_checkpoint.save({"a": torch.zeros(3)}, tmp_path)
    (tmp_path / f"{torch_checkpoint.FILE}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        torch_checkpoint.save({"a": torch.ones(1_000_000)}, tmp_path)
    assert caught.value.filename.startswith(str(tmp_path))
    kept = torch_checkpoint.load(tmp_path)
    assert kept is not None
    assert torch.equal(kept["a"], torch.zeros(3))  # the one before is whole
