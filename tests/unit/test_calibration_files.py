"""The committed calibration sets, their manifest, and the weights of the digit example."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = ROOT / "calibration"
MODELS = ROOT / "recipes" / "models"
MANIFEST: dict[str, Any] = yaml.safe_load((CALIBRATION / "manifest.yaml").read_text(encoding="utf-8"))
SETS: dict[str, dict[str, Any]] = MANIFEST["sets"]
DIGITS = sorted(name for name in SETS if name.startswith("digits-"))
SENTENCES = sorted(name for name in SETS if name.startswith("sentences-"))


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_digits(name: str) -> dict[str, np.ndarray]:
    with np.load(CALIBRATION / SETS[name]["file"], allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def read_sentences(name: str) -> list[dict[str, str]]:
    text = (CALIBRATION / SETS[name]["file"]).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def content_digests(name: str) -> list[str]:
    """One SHA-256 per sample, of the image's bytes or of the text without case and spacing."""
    if name in DIGITS:
        contents = [image.tobytes() for image in read_digits(name)["image"]]
    else:
        contents = [" ".join(line["text"].lower().split()).encode() for line in read_sentences(name)]
    return [hashlib.sha256(content).hexdigest() for content in contents]


@pytest.fixture(scope="module")
def make_digits() -> ModuleType:
    pytest.importorskip("sklearn")
    return load_module(CALIBRATION / "make_digits.py")


@pytest.fixture
def copied_sets(tmp_path: Path) -> Path:
    """A writable copy of the manifest and of every set in it."""
    for name in ["manifest.yaml", *(entry["file"] for entry in SETS.values())]:
        shutil.copy(CALIBRATION / name, tmp_path / name)
    return tmp_path


def test_the_manifest_lists_every_set() -> None:
    files = {path.name for pattern in ("*.npz", "*.jsonl") for path in CALIBRATION.glob(pattern)}
    assert {entry["file"] for entry in SETS.values()} == files


@pytest.mark.parametrize("name", SETS)
def test_a_set_matches_its_checksum_and_count(name: str) -> None:
    entry = SETS[name]
    assert hashlib.sha256((CALIBRATION / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert len(content_digests(name)) == entry["samples"]
    assert entry["split"] in {"train", "fit", "judge"}
    assert entry["origin"]
    assert entry["licence"] in {"CC-BY-4.0", "Apache-2.0"}
    assert entry["preprocessing"]


@pytest.mark.parametrize("names", [DIGITS, SENTENCES], ids=["digits", "sentences"])
def test_no_sample_occurs_twice_within_or_between_sets(names: list[str]) -> None:
    digests = [digest for name in names for digest in content_digests(name)]
    assert len(names) >= 2
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("name", DIGITS)
def test_digit_arrays_are_as_the_manifest_states(name: str) -> None:
    arrays = read_digits(name)
    stated = {array["name"]: array for array in SETS[name]["arrays"]}
    assert set(arrays) == set(stated)
    for key, array in arrays.items():
        shape = tuple(SETS[name]["samples"] if size is None else size for size in stated[key]["shape"])
        assert array.dtype == stated[key]["dtype"]
        assert array.shape == shape
        assert len(stated[key]["axes"]) == array.ndim
        assert not np.isnan(array).any()
        assert [array.min(), array.max()] == stated[key]["range"]
    assert np.array_equal(arrays["image"] * 16, np.round(arrays["image"] * 16))


@pytest.mark.parametrize(("name", "least"), [("digits-train", 100), ("digits-fit", 20), ("digits-judge", 50)])
def test_every_digit_is_represented(name: str, least: int) -> None:
    assert np.bincount(read_digits(name)["label"], minlength=10).min() >= least


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_are_as_the_manifest_states(name: str) -> None:
    lines = read_sentences(name)
    stated = {array["name"]: array for array in SETS[name]["arrays"]}
    least, most = stated["text"]["range"]
    assert all(set(line) == set(stated) for line in lines)
    assert all(least <= len(line["text"]) <= most for line in lines)
    assert all(line["text"] == line["text"].strip() for line in lines)
    lengths = [len(line["text"].split()) for line in lines]
    assert sum(length <= 3 for length in lengths) >= 5
    assert sum(length >= 40 for length in lengths) >= 5


def test_sentence_ids_are_unique_in_both_sets() -> None:
    ids = [line["id"] for name in SENTENCES for line in read_sentences(name)]
    assert len(set(ids)) == len(ids)


def test_the_committed_sets_pass_the_check(make_digits: ModuleType) -> None:
    assert make_digits.main(["--check"]) == 0


def test_the_check_names_a_changed_file(
    make_digits: ModuleType, copied_sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (copied_sets / "sentences-fit.jsonl").open("ab") as file:
        file.write(b"\n")
    (copied_sets / "digits-judge.npz").write_bytes(b"not an archive")
    (copied_sets / "digits-train.npz").unlink()
    assert make_digits.main(["--check", "--directory", str(copied_sets)]) == 1
    message = capsys.readouterr().err
    assert "sentences-fit.jsonl has SHA-256" in message
    assert "digits-judge.npz does not hold the arrays" in message
    assert "digits-train.npz is in the manifest but not in" in message
    assert "digits-fit.npz" not in message


def test_digits_are_regenerated_byte_for_byte(make_digits: ModuleType, copied_sets: Path) -> None:
    again = copied_sets / "again"
    make_digits.write(again)
    assert make_digits.main(["--directory", str(copied_sets)]) == 0
    assert make_digits.main(["--check", "--directory", str(copied_sets)]) == 0
    names = [SETS[name]["file"] for name in DIGITS]
    for name in names:
        assert (again / name).read_bytes() == (copied_sets / name).read_bytes()
    if MANIFEST["zlib"] == zlib.ZLIB_RUNTIME_VERSION:  # another version may compress to other bytes
        for name in [*names, "manifest.yaml"]:
            assert (copied_sets / name).read_bytes() == (CALIBRATION / name).read_bytes()


def test_the_digit_weights_fit_the_model_and_classify_the_judge_set() -> None:
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    model = load_module(MODELS / "digits.py").build()
    model.load_state_dict(load_file(MODELS / "digits.safetensors"), strict=True)
    arrays = read_digits("digits-judge")
    with torch.no_grad():
        logits = model(torch.from_numpy(arrays["image"]))
    assert logits.shape == (len(arrays["label"]), 10)
    assert (logits.argmax(1).numpy() == arrays["label"]).mean() > 0.98
