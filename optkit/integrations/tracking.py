"""Where a training run's figures go, and how a report is put there: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optkit.comparing.figures import figures_of
from optkit.errors import UserError
from optkit.plugin import need
from optkit.report import Report
from optkit.reports.rows import cases, verdict, worst

PREFIX = "optkit"
_REPORTS = ("report.html", "report.md", "report.json")


class Tracker(Protocol):
    """A place that keeps a training run's figures and files. Any object with these two methods is one."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Keep numbers by name, as of a training step."""
        ...

    def keep(self, files: Mapping[str, Path], step: int, text: str) -> None:
        """Keep files and folders by name, as of a training step; `text` is the report in Markdown."""
        ...


def figures(report: Report) -> dict[str, float]:
    """The numbers of a report that a training run is tracked by, as "optkit/DELIVERY/FIGURE".

    Of each delivery that was measured: held (1 or 0), size_bytes, cosine and sqnr_db (of the worst sample and output),
    mismatch (of integer outputs), each task metric by its name with its NAME_drop or NAME_rise against the source, and
    speed_over_STEP, a ratio. Of the run: optkit/held, optkit/seconds.
    """
    found = {f"{PREFIX}/held": float(report.ok), f"{PREFIX}/seconds": float(report.data["seconds"])}
    named = [item["step"] for item in report.data["deliver"]]
    by_id = {step["id"]: step for step in report.steps}
    for name, measured in figures_of(report.data, named).items():
        place = f"{PREFIX}/{name}"
        found[f"{place}/held"] = float(_held(report, name))
        case = next((c for c in cases(by_id[name]) if c.get("kind") == "samples"), {})
        found |= {f"{place}/{metric}": value for metric, value in worst(case.get("source") or {}).items()}
        if "size_bytes" in measured:
            found[f"{place}/size_bytes"] = float(measured["size_bytes"])
        for metric, score in measured.get("scores", {}).items():
            found[f"{place}/{metric}"] = float(score["value"])
            found[f"{place}/{metric}_{'drop' if score['better'] == 'higher' else 'rise'}"] = float(score["change"])
        for against, speed in measured.get("speed", {}).items():
            found[f"{place}/speed_over_{against}"] = float(speed["ratio"]["value"])
    return found


def _held(report: Report, step: str) -> bool:
    """Whether a delivery was handed over."""
    return any(item["step"] == step and item["path"] for item in report.data["deliver"])


def files(report: Report, folder: Path) -> dict[str, Path]:
    """A run's reports, and the folder of each delivery that holds, by name."""
    found = {name: folder / name for name in _REPORTS if (folder / name).is_file()}
    return found | {item["step"]: Path(item["path"]) for item in report.data["deliver"] if item["path"]}


def put(trackers: Sequence[Tracker], report: Report, folder: Path, step: int, *, artifacts: bool) -> list[str]:
    """Log a report's figures, reports and deliveries everywhere; what went wrong, one line each.

    artifacts: whether deliveries go there too. A tracker that fails keeps no other from being told.
    """
    there = files(report, folder)
    kept = there if artifacts else {name: path for name, path in there.items() if name in _REPORTS}
    text = (folder / "report.md").read_text(encoding="utf-8") if (folder / "report.md").is_file() else ""
    wrong = []
    for tracker in trackers:
        try:
            tracker.log(figures(report), step)
            tracker.keep(kept, step, text or verdict(report.data))
        except Exception as error:  # a server's client can fail in any way
            wrong.append(f"{type(tracker).__name__}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return wrong


def active() -> list[Tracker]:
    """The MLflow and Weights & Biases runs that are open in this process; imports neither."""
    found: list[Tracker] = []
    mlflow, wandb = sys.modules.get("mlflow"), sys.modules.get("wandb")
    if mlflow is not None and mlflow.active_run() is not None:
        found.append(MLflow())
    if wandb is not None and getattr(wandb, "run", None) is not None:
        found.append(WandB())
    return found


class MLflow:
    """An MLflow run: figures as metrics, files as artifacts under optkit/step=N/. It may have ended meanwhile.

    Without a `run_id`, the active run's. client: an MlflowClient, default one of the current tracking server.
    """

    def __init__(self, run_id: str | None = None, client: Any = None) -> None:
        mlflow = need("mlflow", "mlflow-skinny")
        run = mlflow.active_run()
        if run_id is None and run is None:
            raise UserError("no MLflow run is active", hint="mlflow.start_run() before, or MLflow(run_id=...)")
        self.run_id = run_id or run.info.run_id
        self.client = client or mlflow.MlflowClient()

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """All figures in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in figures.items()])

    def keep(self, files: Mapping[str, Path], step: int, text: str) -> None:
        """Each step in a folder of its own, so that no delivery is mixed with an earlier one's files."""
        place = f"{PREFIX}/step={step}"
        for name, path in files.items():
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), f"{place}/{name}")
            else:
                self.client.log_artifact(self.run_id, str(path), place)


class TensorBoard:
    """TensorBoard: figures as scalars, the report as text; it keeps no files.

    to: a SummaryWriter, which stays open, or a folder, to which one is made.
    """

    def __init__(self, to: Any) -> None:
        self.writer = to
        if isinstance(to, str | Path):
            need("tensorboard")
            self.writer = need("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(to))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """A scalar each."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def keep(self, files: Mapping[str, Path], step: int, text: str) -> None:
        """The report, and where the files lie."""
        places = "\n".join(f"- {name}: `{path.absolute()}`" for name, path in files.items())
        self.writer.add_text(f"{PREFIX}/report", f"{text}\n\n{places}", step)
        self.writer.flush()


class WandB:
    """A Weights & Biases run: figures against an axis of their own, optkit/step, and an artifact per export.

    run: default the active one.
    """

    def __init__(self, run: Any = None) -> None:
        self.run = run if run is not None else need("wandb").run
        if self.run is None:
            raise UserError("no Weights & Biases run is active", hint="wandb.init() before, or WandB(run)")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """All in one row."""
        # The run's own step must not fall, and whatever trains counts it: figures get an axis of their own.
        self.run.define_metric(f"{PREFIX}/*", step_metric=f"{PREFIX}/step")
        self.run.log({**figures, f"{PREFIX}/step": step})

    def keep(self, files: Mapping[str, Path], step: int, text: str) -> None:
        """One artifact, which has a version for each export."""
        artifact = need("wandb").Artifact(f"optkit-{self.run.id}", "model", metadata={"step": step})
        for name, path in files.items():
            if path.is_dir():
                artifact.add_dir(str(path), name)
            else:
                artifact.add_file(str(path), name)
        self.run.log_artifact(artifact)


@dataclass(frozen=True)
class LightningLogger:
    """A logger of a Lightning Trainer: figures through its own log_metrics, files by what stands behind it."""

    logger: Any

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """As Lightning itself logs."""
        self.logger.log_metrics(dict(figures), step=step)
        self.logger.save()

    def keep(self, files: Mapping[str, Path], step: int, text: str) -> None:
        """Nothing, for a logger that keeps no files."""
        for behind in self._behind():
            behind.keep(files, step, text)

    def _behind(self) -> Iterator[Tracker]:
        kinds = {cls.__name__ for cls in type(self.logger).__mro__}
        if "MLFlowLogger" in kinds:
            yield MLflow(self.logger.run_id, self.logger.experiment)
        elif "WandbLogger" in kinds:
            yield WandB(self.logger.experiment)
        elif "TensorBoardLogger" in kinds:
            yield TensorBoard(self.logger.experiment)
