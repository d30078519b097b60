"""Statistics of the calibration data, made once for several steps of onnx.quantize."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from onnx_models import (
    artifact,
    cnn,
    context,
    images,
    made,
    saved,
)

from optkit.artifact import Artifact
from optkit.caching.sharing import Shared
from optkit.errors import DataError
from optkit.passes.onnx_quantize import PASS
from optkit.testing import ListSamples

if TYPE_CHECKING:
    from optkit.plugin import Tensors

    Draw = Callable[..., list[Tensors]]


class Counted(ListSamples):
    """Samples that count the passes over them."""

    passes = 0

    def feeds(self, batch: int) -> Iterator[Tensors]:
        self.passes += 1
        return super().feeds(batch)


def test_one_pass_serves_several_steps(tmp_path: Path) -> None:
    source, data = saved(cnn(), tmp_path / "source"), Counted(images(24))
    shared = Shared({"root": str(tmp_path / "cache"), "key": "data"}, lambda text, fraction: None)
    alone = [made(PASS, source, tmp_path, data, **options)[0] for options in ({}, {"for": "tensorrt"})]
    assert data.passes == 2

    def run(name: str, given: Shared = shared, **options: Any) -> Artifact:
        (folder := tmp_path / name).mkdir()
        notes = PASS.run(source, folder, PASS.options(**options), context(tmp_path, data, shared=given))
        assert notes["samples"] == 24
        return artifact(folder)

    data.passes = 0
    both = [run("ort"), run("trt", **{"for": "tensorrt"})]
    assert data.passes == 1
    assert [one.path.read_bytes() for one in both] == [one.path.read_bytes() for one in alone]
    run("a", calibration="mse")
    run("b", calibration="percentile", percentile=99.0)
    run("c", calibration="entropy", per_channel=False, **{"for": "tensorrt"})
    assert data.passes == 2  # one for the histograms
    run("d", Shared({"root": str(tmp_path / "cache"), "key": "other data"}, lambda text, fraction: None))
    assert data.passes == 3
    run("e", correct_bias="fast")  # means too, of a model that may have another form
    assert data.passes == 4


def test_a_step_waits_for_another_that_makes_the_same(tmp_path: Path) -> None:
    made_by: list[int] = []
    said: list[str] = []

    def ask(number: int) -> None:
        shared = Shared({"root": str(tmp_path), "key": "k"}, lambda text, fraction: said.append(text))

        def make(folder: Path) -> None:
            made_by.append(number)
            time.sleep(0.4)
            (folder / "what").write_text("done", encoding="utf-8")

        assert (shared(["it"], make) / "what").read_text(encoding="utf-8") == "done"

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(made_by) == 1
    assert "waiting for another step" in said[0]
    assert not list((tmp_path / "partial").iterdir())


def test_what_fails_is_not_shared(tmp_path: Path) -> None:
    shared = Shared({"root": str(tmp_path), "key": "k"}, lambda text, fraction: None)

    def broken(folder: Path) -> None:
        (folder / "half").touch()
        raise DataError("no")

    with pytest.raises(DataError):
        shared(["it"], broken)
    assert not list((shared(["it"], lambda folder: None)).iterdir())
