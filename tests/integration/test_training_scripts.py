"""The example training scripts, run as a user runs them, and what they logged, read back from where it lies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "recipes" / "training"


def run(name: str, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OPTKIT_CACHE": str(out / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(SCRIPTS / name), "--out", str(out), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=out, timeout=600)


def report_of(out: Path) -> Any:
    return json.loads((out / "deliveries" / "report.json").read_text())


def accuracy_of(report: Any, step: str) -> float:
    (found,) = [s for s in report["steps"] if s["id"] == step]
    (value,) = [c["scores"]["accuracy"]["value"] for c in found["check"]["cases"] if c["kind"] == "samples"]
    return float(value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_lightning_and_tensorboard(tmp_path: Path) -> None:
    done = run("lightning_digits.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{n}: {tmp_path / 'deliveries' / n}" for n in ("onnx", "int8")]
    assert "digits: both deliveries hold" in done.stderr
    report = report_of(tmp_path)
    assert accuracy_of(report, "int8") >= 0.95

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "version_0")).Reload()
    tags = events.Tags()
    figures = {
        "held", "seconds", "onnx/sqnr_db", "int8/cosine", "int8/size_bytes", "int8/accuracy_drop",
        "int8/speed_over_onnx",
    }  # fmt: skip
    assert {"val_accuracy", *(f"optkit/{name}" for name in figures)} <= set(tags["scalars"])
    (logged,) = events.Scalars("optkit/int8/accuracy")
    assert logged.value == pytest.approx(accuracy_of(report, "int8"))
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert checkpoint.stem.endswith(f"step={logged.step}")
    (text,) = events.Tensors("optkit/report/text_summary")
    assert "digits: both deliveries hold" in text.tensor_proto.string_val[0].decode()


def test_a_gate_that_fails_makes_the_training_fail(tmp_path: Path) -> None:
    done = run("lightning_digits.py", tmp_path, "--epochs", "1", "--gate", "accuracy >= 100%")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "optkit.errors.CheckError: step 17 (epoch=0-step=17.ckpt): onnx: gate accuracy >= 100%" in done.stderr
    assert report_of(tmp_path)["exit_code"] == 1
    assert not (tmp_path / "deliveries" / "onnx").exists()


def test_trainer_and_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("trainer_digits.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"fp16: {tmp_path / 'deliveries' / 'fp16'}"
    report = report_of(tmp_path)

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient((tmp_path / "mlflow").as_uri())
    (logged,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert logged.info.status == "FINISHED"
    assert "eval_accuracy" in logged.data.metrics
    assert logged.data.metrics["optkit/held"] == 1
    assert logged.data.metrics["optkit/fp16/accuracy"] == pytest.approx(accuracy_of(report, "fp16"))
    (size,) = client.get_metric_history(logged.info.run_id, "optkit/fp16/size_bytes")
    assert (tmp_path / "checkpoints" / f"checkpoint-{size.step}").is_dir()
    place = f"optkit/step={size.step}"
    kept = {Path(f.path).name for f in client.list_artifacts(logged.info.run_id, place)}
    assert kept == {"report.html", "report.md", "report.json", "openvino", "fp16"}
    there = Path(client.download_artifacts(logged.info.run_id, f"{place}/fp16", str(tmp_path)))
    delivered = tmp_path / "deliveries" / "fp16"
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {p.name: p.read_bytes() for p in delivered.iterdir()}
