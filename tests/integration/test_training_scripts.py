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


def run(name: str, out: Path, cache: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    out.mkdir()
    env = {**os.environ, "OPTKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
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
    out = tmp_path / "out"
    done = run("lightning_digits.py", out, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [f"{n}: {out / 'deliveries' / n}" for n in ("onnx", "int8")]
    assert "digits: both deliveries hold" in done.stderr
    report = report_of(out)
    assert accuracy_of(report, "int8") >= 0.95

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard" / "version_0")).Reload()
    tags = events.Tags()
    figures = {
        "held", "seconds", "onnx/sqnr_db", "int8/cosine", "int8/size_bytes", "int8/accuracy_drop",
        "int8/speed_over_onnx",
    }  # fmt: skip
    assert {"val_accuracy", *(f"optkit/{name}" for name in figures)} <= set(tags["scalars"])
    (logged,) = events.Scalars("optkit/int8/accuracy")
    assert logged.value == pytest.approx(accuracy_of(report, "int8"))
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert checkpoint.stem.endswith(f"step={logged.step}")
    (text,) = events.Tensors("optkit/report/text_summary")
    assert "digits: both deliveries hold" in text.tensor_proto.string_val[0].decode()


def test_trainer_and_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    done = run("trainer_digits.py", out, cache)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"fp16: {out / 'deliveries' / 'fp16'}"
    report = report_of(out)

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient((out / "mlflow").as_uri())
    (logged,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert logged.info.status == "FINISHED"
    assert "eval_accuracy" in logged.data.metrics
    assert logged.data.metrics["optkit/held"] == 1
    assert logged.data.metrics["optkit/fp16/accuracy"] == pytest.approx(accuracy_of(report, "fp16"))
    (size,) = client.get_metric_history(logged.info.run_id, "optkit/fp16/size_bytes")
    assert (out / "checkpoints" / f"checkpoint-{size.step}").is_dir()
    place = f"optkit/step={size.step}"
    kept = {Path(f.path).name for f in client.list_artifacts(logged.info.run_id, place)}
    assert kept == {"report.html", "report.md", "report.json", "openvino", "fp16"}
    there = Path(client.download_artifacts(logged.info.run_id, f"{place}/fp16", str(tmp_path)))
    delivered = out / "deliveries" / "fp16"
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {p.name: p.read_bytes() for p in delivered.iterdir()}

    failed = run("trainer_digits.py", tmp_path / "failed", cache, "--gate", "accuracy >= 100%")
    assert failed.returncode == 1
    assert "deliveries" not in failed.stdout
    what = f"optkit.errors.CheckError: step {size.step} (checkpoint-{size.step}): openvino: gate accuracy >= 100%"
    assert what in failed.stderr
    assert [d["path"] for d in report_of(tmp_path / "failed")["deliver"]] == [None, None]
