"""Datasets from npz files, Python callables and random numbers: streaming, checks, batches."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_kit import DIMS, IMAGE, complaint, opened

from optkit.artifact import Dim, TensorSpec
from optkit.data import Dataset, overlap, resize_feeds
from optkit.data.batch import stack_labels
from optkit.spec.dataspec import NpzData, PythonData


def images(count: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).random((count, *(shape or (3, 4, 5))), np.float32)


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Dataset]:
    """A dataset of arrays saved to a file."""

    def make(*inputs: TensorSpec, label: str | None = None, limit: int | None = None, ignore: tuple[str, ...] = (),
             compressed: bool = True, dims: dict[str, Dim] | None = None, **arrays: Any) -> Dataset:  # fmt: skip
        (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", **arrays)
        return opened(NpzData(npz="a.npz", label=label, limit=limit, ignore=ignore), tmp_path, *inputs, dims=dims)

    return make


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Dataset]:
    """A dataset of samples that a Python file returns."""

    def make(samples: list[Any], *inputs: TensorSpec, dims: dict[str, Dim] | None = None, label: str | None = None
             ) -> Dataset:  # fmt: skip
        (tmp_path / "samples.pickle").write_bytes(pickle.dumps(samples))
        (tmp_path / "listed.py").write_text(
            "import pathlib, pickle\n"
            "def make():\n    return pickle.loads(pathlib.Path(__file__).with_name('samples.pickle').read_bytes())\n"
        )
        return opened(PythonData(python="listed.py:make", label=label), tmp_path, *inputs, dims=dims)

    return make


# --- npz


@pytest.mark.parametrize("compressed", [True, False])
def test_npz_gives_rows_and_labels_bit_for_bit(npz: Callable[..., Dataset], compressed: bool) -> None:
    image, label = images(5), np.arange(5) * 7
    dataset = npz(image=image, y=label, label="y", compressed=compressed)
    assert (len(dataset), dataset.labelled, dataset.synthetic) == (5, True, False)
    pairs = list(dataset.iter_labelled())
    assert [int(y) for _, y in pairs] == label.tolist()
    for (sample, _), row in zip(pairs, image, strict=True):
        assert list(sample) == ["image"]
        assert sample["image"].dtype == np.float32
        np.testing.assert_array_equal(sample["image"], row)
        sample["image"] += 1  # a sample is the caller's own
    assert [list(sample) for sample in dataset] == [["image"]] * 5
    assert dataset.preprocessing == {"kind": "npz"}


def test_npz_takes_big_endian_and_scalar_rows(npz: Callable[..., Dataset]) -> None:
    dataset = npz(TensorSpec("x", "float32", ("batch",)), x=np.arange(3, dtype=">f4"))
    assert [(s["x"].item(), s["x"].shape, s["x"].dtype) for s in dataset][2] == (2.0, (), np.dtype("=f4"))
    np.testing.assert_array_equal(next(dataset.feeds(3))["x"], np.arange(3, dtype=np.float32))


def test_limit_takes_the_first_samples(npz: Callable[..., Dataset]) -> None:
    image = images(5)
    dataset = npz(image=image, limit=2)
    assert (len(dataset), len(list(dataset))) == (2, 2)
    assert len(npz(image=image, limit=50)) == 5
    assert npz(image=image, limit=2).digest() == npz(image=image[:2]).digest() != npz(image=image).digest()


FREE_LISTS = 200  # KiB; CPython keeps up to 2000 freed tuples of each length, which count as used


def peak_kib(dataset: Dataset) -> float:
    """The most memory that passes over all samples take beyond what is there before."""
    next(dataset.batches(8))  # whatever is cached once
    gc.collect()
    tracemalloc.start()
    try:
        for _ in dataset.batches(8):
            pass
        dataset.digest()
        return tracemalloc.get_traced_memory()[1] / 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compressed", [True, False])
def test_memory_does_not_grow_with_an_npz(npz: Callable[..., Dataset], compressed: bool) -> None:
    few, many = (peak_kib(npz(image=images(count, 3, 8, 8), y=np.arange(count), label="y", compressed=compressed,
                              dims={})) for count in (100, 5000))  # fmt: skip
    assert many < few + FREE_LISTS
    assert images(5000, 3, 8, 8).nbytes / 1024 > 15 * FREE_LISTS


def test_memory_does_not_grow_with_a_generator(tmp_path: Path) -> None:
    (tmp_path / "make.py").write_text(
        "import numpy as np\ndef make(count):\n    for i in range(count):\n"
        "        yield {'image': np.full((3, 8, 8), i, np.float32)}\n")  # fmt: skip
    spec = PythonData(python="make.py:make")
    few, many = (peak_kib(opened(spec.model_copy(update={"kwargs": {"count": count}}), tmp_path, dims={}))
                 for count in (100, 5000))  # fmt: skip
    assert many < few + FREE_LISTS


@pytest.mark.parametrize(("arrays", "options", "message", "hint"), [
    ({"x": images(2)}, {}, "a.npz lacks input 'image'; it has x", "one array per model input"),
    ({"imag": images(2)}, {}, "a.npz lacks input 'image'; it has imag", "did you mean 'imag'?"),
    ({"image": images(2), "extra": np.ones(2)}, {}, "a.npz has 'extra', neither an input nor the label",
     "name the labels with label:, and what is not needed with ignore: [...]"),
    ({"image": images(2), "labels": np.ones(2)}, {"label": "label"}, "a.npz has no label 'label'",
     "did you mean 'labels'?"),
    ({"image": images(2)}, {"label": "image"}, "label 'image' is an input of the model", "drop label:"),
    ({"image": images(2)}, {"ignore": ("imag",)}, "a.npz has no 'imag' to ignore", "did you mean 'image'?"),
    ({"image": images(2), "y": np.ones(3)}, {"label": "y"},
     "the arrays disagree on the number of samples: image 2, y 3", "axis 0 counts the samples"),
    ({"image": images(0)}, {}, "a.npz has no samples", "axis 0"),
    ({"image": np.float32(3)}, {}, "array 'image' of a.npz is a single number", "shape (samples,)"),
    ({"image": np.array([{}, {}])}, {}, "array 'image' of a.npz holds pickled Python objects", "save it again"),
    ({"image": np.zeros(2, "i4,f4")}, {}, "array 'image' of a.npz holds records", "save it again"),
    ({"image": np.asfortranarray(images(2))}, {}, "stored column by column (Fortran order)", "ascontiguousarray"),
])  # fmt: skip
def test_an_npz_that_does_not_fit_is_refused_when_it_is_opened(
    npz: Callable[..., Dataset], arrays: Any, options: Any, message: str, hint: str
) -> None:
    error = complaint(lambda: npz(**arrays, **options))
    assert message in error.what
    assert hint in error.hint


def test_ignored_arrays_are_not_read(npz: Callable[..., Dataset]) -> None:
    dataset = npz(image=images(2), other=np.array([{}, {}, {}]), ignore=("other",))
    assert [list(sample) for sample in dataset] == [["image"]] * 2


def test_a_damaged_npz_is_told_from_a_good_one(npz: Callable[..., Dataset], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    dataset = npz(image=images(50), compressed=False)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1  # one bit of one pixel
    path.write_bytes(flipped)
    assert "no readable .npz file (BadZipFile: Bad CRC-32" in complaint(lambda: list(dataset)).what
    path.write_bytes(good[: len(good) // 2])
    assert "no readable .npz file (BadZipFile" in complaint(lambda: list(dataset)).what
    assert "no readable .npz file (BadZipFile" in complaint(lambda: opened(NpzData(npz="a.npz"), tmp_path)).what
    np.savez(path, image=images(40))
    assert "was changed while it was in use" in complaint(lambda: list(dataset)).what
    np.save(tmp_path / "b.npy", images(2))
    assert "save it with np.savez" in complaint(lambda: opened(NpzData(npz="b.npy"), tmp_path)).hint
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", pickle.dumps(3))
    assert "no readable .npz file (ValueError" in complaint(lambda: opened(NpzData(npz="a.npz"), tmp_path)).what
    header = (tmp_path / "b.npy").read_bytes()[:128]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", header + bytes(300))
    assert "ends within sample 1" in complaint(lambda: list(opened(NpzData(npz="a.npz"), tmp_path))).what
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", header + bytes(600))
    assert "longer than its header says" in complaint(lambda: list(opened(NpzData(npz="a.npz"), tmp_path))).what
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "lacks input 'image'; it has readme.txt" in complaint(lambda: opened(NpzData(npz="a.npz"), tmp_path)).what


# --- whether a sample fits


FIXED = TensorSpec("image", "float32", ("batch", 3, 4, 5), range=(0.0, 1.0))
TOKENS = TensorSpec("ids", "int64", ("batch", "seq"), range=(0, 99))
MASK = TensorSpec("mask", "int64", ("batch", "seq"))


def changed(value: Any) -> Any:
    image = images(3)
    image[1, 0, 0, 0] = value
    return image


@pytest.mark.parametrize(("image", "message", "hint"), [
    (changed(np.nan), "sample 1, input 'image': 1 of 60 values are not finite (NaN)", "remove or repair"),
    (changed(-np.inf), "sample 1, input 'image': 1 of 60 values are not finite (infinity)", "remove or repair"),
    (changed(255), "sample 1, input 'image': values from 0.0", "normalise the data as in training"),
    (changed(-0.01), "leave the declared range 0 to 1", "or correct the input's range"),
    (images(3).astype("float64"), "sample 0, input 'image': expected float32, found float64",
     "cast it when you save it: array.astype('float32')"),
    (images(3).astype("uint8"), "expected float32, found uint8: these look like raw pixels, 0 to 255",
     "(image.astype('float32') / 255 - mean) / std"),
    (images(3, 4, 5, 3), "sample 0, input 'image': expected shape (3, 4, 5), found (4, 5, 3)",
     "it looks like NHWC: give sample.transpose(2, 0, 1)"),
    (images(3, 3, 4, 6), "expected shape (3, 4, 5), found (3, 4, 6)", "axis 2 is fixed at 5"),
    (images(3, 60), "expected shape (batch, 3, 4, 5), or (3, 4, 5) without the batch axis, found (60,)",
     "without the first, the batch"),
])  # fmt: skip
def test_a_sample_that_does_not_fit_is_refused(
    npz: Callable[..., Dataset], image: Any, message: str, hint: str
) -> None:
    error = complaint(lambda: list(npz(FIXED, image=image)))
    assert message in error.what
    assert hint in error.hint


def test_channels_last_is_recognised_both_ways(npz: Callable[..., Dataset]) -> None:
    last = TensorSpec("image", "float32", ("batch", "height", "width", 3))
    assert "looks like NCHW: give sample.transpose(1, 2, 0)" in complaint(lambda: list(npz(last, image=images(2)))).hint
    assert (
        "looks like NHWC: give sample.transpose(2, 0, 1)" in complaint(lambda: list(npz(image=images(2, 4, 5, 3)))).hint
    )


def test_a_range_written_with_few_digits_holds(npz: Callable[..., Dataset]) -> None:
    spec = TensorSpec("image", "float32", ("batch", 3, 4, 5), range=(-2.12, 2.64))
    image = np.clip(images(2) * 6 - 3, (0 - 0.485) / 0.229, (1 - 0.406) / 0.225 + 0.0004).astype(np.float32)
    assert image.max() > 2.64
    assert len(list(npz(spec, image=image))) == 2


def test_integers_must_lie_in_their_range_exactly_and_have_the_type(npz: Callable[..., Dataset]) -> None:
    dims = {"batch": Dim(1, 2, 4), "seq": Dim(2, 4, 8)}
    ids = np.array([[5, 100, 1]])
    error = complaint(lambda: list(npz(TOKENS, ids=ids, dims=dims)))
    assert "sample 0, input 'ids': values from 1 to 100 leave the declared range 0 to 99" in error.what
    error = complaint(lambda: list(npz(TOKENS, ids=ids.astype("int32"), dims=dims)))
    assert "expected int64, found int32" in error.what


@pytest.mark.parametrize("dtype", ["bfloat16", "int4", "string"])
def test_types_without_numpy_arrays_are_refused(npz: Callable[..., Dataset], dtype: str) -> None:
    spec = TensorSpec("image", dtype, ("batch", 3))
    assert f"takes {dtype}, which numpy has no type for" in complaint(lambda: npz(spec, image=images(2))).what
    assert "is unknown" in complaint(lambda: npz(TensorSpec("image", "float32", None), image=images(2))).what


def test_a_dynamic_axis_keeps_to_its_dim(listed: Callable[..., Dataset]) -> None:
    error = complaint(lambda: list(listed([{"image": images(1, 3, 4, 7)[0]}])))
    assert "sample 0, input 'image': width is 7, the recipe says 2 to 6" in error.what
    error = complaint(lambda: list(listed([{"image": images(1, 3, 0, 4)[0]}], dims={})))
    assert "height is 0, the recipe says at least 1" in error.what
    samples = [{"ids": np.arange(4), "mask": np.ones(3, np.int64)}]
    error = complaint(lambda: list(listed(samples, TOKENS, MASK, dims={})))
    assert "sample 0, input 'mask': seq is 3, but 4 in input 'ids'" in error.what


def test_ranks_may_not_change_between_samples(listed: Callable[..., Dataset]) -> None:
    samples = [{"image": images(2)[0]}, {"image": images(1)}]
    error = complaint(lambda: list(listed(samples)))
    assert "sample 1, input 'image': expected shape (3, height, width), found (1, 3, 4, 5)" in error.what


# --- batches


def test_batches_stack_and_count(npz: Callable[..., Dataset]) -> None:
    image = images(5)
    batches = list(npz(image=image, y=np.arange(5), label="y").batches(2))
    found = [(feeds["image"].shape[0], count, [int(n) for n in labels or ()]) for feeds, count, labels in batches]
    assert found == [(2, 2, [0, 1]), (2, 2, [2, 3]), (1, 1, [4])]
    np.testing.assert_array_equal(np.concatenate([feeds["image"] for feeds, _, _ in batches]), image)
    assert [len(feeds["image"]) for feeds in npz(image=image).feeds(3)] == [3, 2]
    assert next(npz(image=image).batches(2))[2] is None


def test_a_static_batch_axis_decides_the_size_and_is_filled(npz: Callable[..., Dataset]) -> None:
    image = images(5)
    for asked in (1, 3, 100):
        batches = list(npz(TensorSpec("image", "float32", (3, 3, 4, 5)), image=image, y=np.arange(5), label="y")
                       .batches(asked))  # fmt: skip
        assert [(feeds["image"].shape[0], count) for feeds, count, _ in batches] == [(3, 3), (3, 2)]
        np.testing.assert_array_equal(batches[1][0]["image"], image[[3, 4, 3]])
        assert batches[1][2] is not None
        assert [int(n) for n in batches[1][2]] == [3, 4]


def test_a_dynamic_batch_axis_keeps_to_its_dim(npz: Callable[..., Dataset]) -> None:
    dims = {**DIMS, "batch": Dim(2, 2, 3)}
    image = images(4)
    assert [(len(f["image"]), n) for f, n, _ in npz(image=image, dims=dims).batches(9)] == [(3, 3), (2, 1)]
    assert [(len(f["image"]), n) for f, n, _ in npz(image=image, dims=dims).batches(1)] == [(2, 2), (2, 2)]


def test_a_sample_with_all_axes_is_fed_as_it_is(npz: Callable[..., Dataset]) -> None:
    dataset = npz(image=images(2, 4, 3, 4, 5))
    assert [(feeds["image"].shape, count) for feeds, count, _ in dataset.batches(8)] == [((4, 3, 4, 5), 1)] * 2
    scalar = TensorSpec("gain", "float32", ())
    dataset = npz(IMAGE, scalar, image=images(3), gain=np.ones(3, np.float32))
    shapes = [(feeds["image"].shape, feeds["gain"].shape, count) for feeds, count, _ in dataset.batches(8)]
    assert shapes == [((1, 3, 4, 5), (), 1)] * 3


def test_batch_axes_that_contradict_each_other_are_refused(npz: Callable[..., Dataset]) -> None:
    two, three = (TensorSpec(f"x{n}", "float32", (n, 4)) for n in (2, 3))
    error = complaint(lambda: next(npz(two, three, x2=images(6, 4), x3=images(6, 4)).batches(1)))
    assert "x3 takes 3 samples at a time, but x2 takes 2 samples at a time" in error.what
    error = complaint(lambda: next(npz(two, IMAGE, x2=images(2, 4), image=images(2, 2, 3, 4, 5)).batches(1)))
    assert "image comes with its batch axis" in error.what
    other = TensorSpec("other", "float32", ("batch", 4))
    error = complaint(lambda: next(npz(other, IMAGE, other=images(2, 4), image=images(2, 2, 3, 4, 5)).batches(1)))
    assert "batch is 2 in input 'image', but 1 in 'other'" in error.what


def test_ragged_samples_are_padded_with_zeros_in_every_input_alike(listed: Callable[..., Dataset]) -> None:
    dims = {"batch": Dim(1, 2, 4), "seq": Dim(1, 4, 8)}
    samples = [{"ids": np.arange(1, n + 1), "mask": np.ones(n, np.int64)} for n in (2, 4, 3)]
    dataset = listed(samples, TOKENS, MASK, dims=dims)
    assert [sample["ids"].tolist() for sample in dataset] == [[1, 2], [1, 2, 3, 4], [1, 2, 3]]
    first, second = dataset.feeds(2)
    assert first["ids"].tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert first["mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert second["ids"].tolist() == [[1, 2, 3]]
    error = complaint(lambda: list(listed(samples, TensorSpec("ids", "int64", ("batch", 2)),
                                          TensorSpec("mask", "int64", ("batch", 2)))))  # fmt: skip
    assert "sample 1, input 'ids': expected shape (2,), found (4,)" in error.what


def test_numpy_scalars_are_arrays_without_axes(listed: Callable[..., Dataset]) -> None:
    dataset = listed([{"x": np.float32(3)}], TensorSpec("x", "float32", ("batch",)))
    assert isinstance(next(iter(dataset))["x"], np.ndarray)
    assert next(dataset.feeds(2))["x"].tolist() == [3]


def test_labels_may_differ_in_shape(listed: Callable[..., Dataset]) -> None:
    samples = [{"image": images(1)[0], "y": np.zeros(n)} for n in (2, 3)]
    dataset = listed(samples, label="y")
    ((_, _, labels),) = dataset.batches(2)
    assert [label.shape for label in labels or ()] == [(2,), (3,)]
    assert len(dataset.digest()) == 64
    stacked = stack_labels(labels)
    assert stacked is not None
    assert stacked.dtype == object  # which whoever needs class numbers complains of
    assert stack_labels(None) is None
    assert stack_labels([{"boxes": 1, "labels": 2}]) is None


def test_a_dataset_may_have_several_labels(npz: Callable[..., Dataset], listed: Callable[..., Dataset]) -> None:
    image, boxes = images(3), np.arange(24.0).reshape(3, 2, 4)
    dataset = npz(image=image, boxes=boxes, kinds=np.arange(6).reshape(3, 2), label=["boxes", "kinds"])
    ((_, count, labels),) = dataset.batches(3)
    assert (count, [sorted(label) for label in labels or ()]) == (3, [["boxes", "kinds"]] * 3)
    np.testing.assert_array_equal((labels or [])[1]["boxes"], boxes[1])
    digest = dataset.digest()
    other = npz(image=image, boxes=boxes + 1, kinds=np.arange(6).reshape(3, 2), label=["boxes", "kinds"])
    assert digest != other.digest()
    lists = [{"image": images(1)[0], "boxes": [[1, 2], [3]], "kinds": n} for n in (1, 2)]
    one, two = (listed(lists[:n], label=["boxes", "kinds"]).digest() for n in (1, 2))
    assert one != two
    what = complaint(lambda: npz(image=image, label=["boxes"])).what
    assert "has no label 'boxes'" in what


def test_resized_feeds_repeat_or_cut_their_content() -> None:
    feeds = {"ids": np.array([[1, 2, 3], [4, 5, 6]]), "gain": np.array(2.0)}
    inputs = (TensorSpec("ids", "int64", ("batch", "seq")), TensorSpec("gain", "float64", ()))
    made = resize_feeds(feeds, inputs, {"batch": 3, "seq": 5, "other": 9})
    assert made["ids"].tolist() == [[1, 2, 3, 1, 2], [4, 5, 6, 4, 5], [1, 2, 3, 1, 2]]
    assert made["gain"] is feeds["gain"]
    assert resize_feeds(feeds, inputs, {"seq": 1})["ids"].tolist() == [[1], [4]]
    assert resize_feeds(feeds, inputs, {})["ids"] is feeds["ids"]


# --- digests


def test_digests_depend_on_content_alone(npz: Callable[..., Dataset]) -> None:
    image = images(3)
    one, other = (list(npz(image=image, y=np.arange(3) + n, label="y").sample_digests()) for n in (0, 1))
    assert one == other  # labels don't count
    assert list(npz(image=image.astype(">f4")).sample_digests()) == one
    image[2, 0, 0, 0] += 1e-6
    last = list(npz(image=image).sample_digests())
    assert (last[:2] == one[:2], last[2] == one[2]) == (True, False)
    assert len(set(one)) == 3


def test_the_dataset_digest_follows_labels(npz: Callable[..., Dataset]) -> None:
    digests = [npz(image=images(3), y=np.arange(3) + n, label="y").digest() for n in (0, 1, 1)]
    assert digests[0] != digests[1] == digests[2]


def test_overlap_finds_shared_samples(tmp_path: Path) -> None:
    image = images(6)
    np.savez(tmp_path / "fit.npz", image=image[:4])
    np.savez(tmp_path / "judge.npz", image=image[[5, 3, 0, 3]], y=np.zeros(4))
    fit = opened(NpzData(npz="fit.npz"), tmp_path)
    judge = opened(NpzData(npz="judge.npz", label="y"), tmp_path)
    assert overlap(fit, judge) == [(3, 1), (0, 2), (3, 3)]
    assert overlap(judge, fit) == [(2, 0), (1, 3)]


# --- Python callables


# --- random
