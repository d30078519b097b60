"""Make the digit sets and keep the manifest's checksums current.

    python calibration/make_digits.py [--directory DIR]           write digits-*.npz, refresh manifest.yaml
    python calibration/make_digits.py --check [--directory DIR]   write nothing; exit 1 if anything differs

Source: scikit-learn's ``load_digits()``, ``images`` (sample=1797, row=8, column=8) float64, whole numbers
0..16 (pen pixels counted in a 4x4 cell), and ``target`` (sample,) int64, 0..9.

Each ``digits-<split>.npz`` holds

    image  float32 (sample, channel=1, row=32, column=32), range [0, 1], multiples of 1/16 (0 paper, 1 ink)
    label  int64   (sample,), range 0..9, the digit drawn

Preprocessing: divide by 16, then repeat every pixel 4x4 (nearest neighbour, ``numpy.kron``).

Split: the images of each class are ranked by the SHA-256 of their 64 source bytes; the first 100 go to
``train``, the next 20 to ``fit`` and the rest (57 on average) to ``judge``. Rank depends on content alone,
so no random generator is involved and equal images would meet side by side; duplicates are refused. Within
a file the samples keep digest order, which mixes the classes: any prefix is a fair draw.
The writers of the digits are not identified by the source, so the splits may share writers.

The files are byte-for-byte reproducible for one zlib version (named in the manifest); another version may
compress to other bytes, though the arrays are always the same.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
MANIFEST = "manifest.yaml"
CLASSES = 10
SCALE = 4  # output pixels per source pixel, along each axis
LEVELS = 16  # the source's brightest value
TRAIN_PER_CLASS = 100
FIT_PER_CLASS = 20
SPLITS = ("train", "fit", "judge")

Arrays = dict[str, NDArray[Any]]


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digit_sets() -> dict[str, Arrays]:
    """The arrays ``image`` and ``label`` of every split, as the module's docstring states them."""
    source = load_digits()
    pixels = source.images.astype(np.uint8)  # (sample, row=8, column=8), 0..16
    labels = source.target.astype(np.int64)  # (sample,)
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
    if len(set(digests)) != len(digests):
        raise ValueError("load_digits() holds duplicate images; the splits would not be disjoint")

    rank = sorted(range(len(digests)), key=digests.__getitem__)
    members: dict[str, list[int]] = {split: [] for split in SPLITS}
    seen = [0] * CLASSES
    for index in rank:
        digit = int(labels[index])
        position = seen[digit]
        seen[digit] += 1
        if position < TRAIN_PER_CLASS:
            members["train"].append(index)
        elif position < TRAIN_PER_CLASS + FIT_PER_CLASS:
            members["fit"].append(index)
        else:
            members["judge"].append(index)

    cell = np.ones((1, SCALE, SCALE), np.float32)
    sets: dict[str, Arrays] = {}
    for split, indices in members.items():
        image = np.kron(pixels[indices].astype(np.float32) / np.float32(LEVELS), cell)
        sets[split] = {"image": np.ascontiguousarray(image[:, None]), "label": labels[indices]}
    return sets


def write(directory: Path) -> list[Path]:
    """Write ``digits-<split>.npz`` for every split into `directory`; return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for split, arrays in digit_sets().items():
        path = directory / f"digits-{split}.npz"
        np.savez_compressed(path, allow_pickle=False, **arrays)
        paths.append(path)
    return paths


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of `directory` as a mapping."""
    manifest: dict[str, Any] = yaml.safe_load((directory / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def count_samples(path: Path) -> int:
    """Samples in a set: the length of the first axis (npz) or the number of lines (jsonl)."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return int(arrays["label"].shape[0])
    return path.read_bytes().count(b"\n")


def refresh(directory: Path) -> None:
    """Rewrite every ``sha256``, every ``samples`` and the ``zlib`` line of the manifest from the files.

    The edit is textual, so comments and layout stay; ``sha256`` and ``samples`` must follow ``file``.
    """
    path = directory / MANIFEST
    text = path.read_text(encoding="utf-8")
    for entry in read_manifest(directory)["sets"].values():
        file = directory / entry["file"]
        text, changes = re.subn(
            rf"(file: {re.escape(file.name)}\n +sha256: )\S+(\n +samples: )\d+",
            rf"\g<1>{sha256(file)}\g<2>{count_samples(file)}",
            text,
        )
        if changes != 1:
            raise ValueError(f"{path}: expected one 'file: {file.name}' followed by sha256 and samples")
    text, changes = re.subn(r'(?m)^zlib: ".*"$', f'zlib: "{zlib.ZLIB_RUNTIME_VERSION}"', text)
    if changes != 1:
        raise ValueError(f"{path}: expected one line 'zlib: \"VERSION\"'")
    path.write_text(text, encoding="utf-8", newline="\n")


def check(directory: Path) -> list[str]:
    """Compare the files with the manifest and the digit arrays with their source; one sentence per fault."""
    faults: list[str] = []
    for entry in read_manifest(directory)["sets"].values():
        path = directory / entry["file"]
        if not path.is_file():
            faults.append(f"{path.name} is in the manifest but not in {directory}.")
        elif sha256(path) != entry["sha256"]:
            faults.append(f"{path.name} has SHA-256 {sha256(path)}, the manifest says {entry['sha256']}.")
        elif count_samples(path) != entry["samples"]:
            count = count_samples(path)
            faults.append(f"{path.name} holds {count} samples, the manifest says {entry['samples']}.")
    for split, expected in digit_sets().items():
        path = directory / f"digits-{split}.npz"
        if path.is_file() and not _same_arrays(path, expected):
            faults.append(f"{path.name} does not hold the arrays that this script makes.")
    return faults


def _same_arrays(path: Path, expected: Arrays) -> bool:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return set(arrays.files) == set(expected) and all(
                arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array)
                for name, array in expected.items()
            )
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        return False


def main(argv: list[str] | None = None) -> int:
    """Command line; the exit status is 0, or 1 when ``--check`` finds a fault."""
    parser = argparse.ArgumentParser(description="Make the digit sets, or check every set in the manifest.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file does not match")
    parser.add_argument("--directory", type=Path, default=HERE, help="where the sets and the manifest are")
    options = parser.parse_args(argv)
    directory: Path = options.directory
    if options.check:
        faults = check(directory)
        for fault in faults:
            print(fault, file=sys.stderr)
        return 1 if faults else 0
    for path in write(directory):
        print(f"{path.name}: {count_samples(path)} samples, {path.stat().st_size} bytes")
    refresh(directory)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
