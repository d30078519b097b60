"""Every kind of source model: what decides its digest, that it loads, and what is said when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_kit
from click.testing import CliRunner
from source_kit import EXTERNAL, TORCH, described, linear, recipe_of, repository, trained

from optkit.cache import Cache
from optkit.cli import cli
from optkit.errors import SourceError
from optkit.models.sources import source_artifact
from optkit.recipe import load_recipe
from optkit.registry import get_runner


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A training repository with everything in it, and its module."""
    base = repository(tmp_path_factory.mktemp("repository"))
    return base, trained(base)


@pytest.fixture
def repo(built: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the repository that a test may change."""
    return Path(shutil.copytree(built[0], tmp_path / "repo"))


# ------------------------------------------------------------------------------------------------ loading

SOURCES = {
    "safetensors": TORCH,
    "pt": "torch: models/net.py:build\n  weights: w.pt",
    "pth": "torch: models/net.py:build\n  weights: w.pth",
    "kwargs": f"{TORCH}\n  kwargs: {{classes: 3}}",
    "pt2": "pt2: program.pt2",
    "torchscript": "torchscript: script.pt",
    "pickle": "pickle: whole.pt\n  trust_pickle: true",
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_torch_source_answers_as_the_module(
    built: tuple[Path, Any], repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    import torch

    if source == "pickle":
        monkeypatch.syspath_prepend(repo / "models")
    recipe = recipe_of(repo, (TORCH, SOURCES[source]))
    artifact = described(recipe, Cache(tmp_path / "cache"))
    image = np.load(repo / "judge.npz")["image"][:8]
    assert artifact.signature is not None
    assert [str(t) for t in artifact.signature.inputs] == ["image: float32[batch, 3, 8, 8]"]
    with get_runner("torch").open(artifact) as session, torch.no_grad():
        answer = session.infer({"image": image})["output"]
        np.testing.assert_allclose(answer, built[1](torch.from_numpy(image)).numpy(), atol=1e-6)


# ------------------------------------------------------------------------------------------------ refusals

REFUSED: dict[str, tuple[tuple[tuple[str, str], ...], str, str, int]] = {
    # change of the recipe; what is said; one thing to try; the recipe's line
    "raises": ((("net.py:build", "net.py:raises"),), "ValueError: no such layer, at {}/models/net.py:39 in raises: "
               '`raise ValueError("no such layer")`', "by hand", 4),
    "none": ((("net.py:build", "net.py:nothing"),), "returned None, not an nn.Module", "return the module", 4),
    "exits": ((("net.py:build", "net.py:leave"),), "raised SystemExit: 3", "by hand", 4),
    "misspelt": ((("net.py:build", "net.py:biuld"),), "net.py has no callable 'biuld'", "did you mean 'build'?", 4),
    "kwargs": ((("  weights: w.safetensors", "  kwargs: {clases: 3}"),), "build takes no argument 'clases'",
               "did you mean 'classes'?", 5),
    "other weights": ((("  weights: w.safetensors", "  weights: w.safetensors\n  kwargs: {classes: 5}"),),
                      "of another shape: head.weight: (3, 4) in the file, (5, 4) in the model, head.bias", "kwargs", 5),
    "other keys": ((("net.py:build", "net.py:branch"),), "4 unexpected\nunexpected: ", "options", 5),
    "pickled weights": ((("w.safetensors", "whole.pt"),), "is not tensors alone: loading it would call net.Net",
                        "trust_pickle: true", 5),
    "script as weights": ((("w.safetensors", "script.pt"),), "is a whole torchscript model, not weights",
                          "{torchscript: script.pt}", 5),
    "weights as program": (((TORCH, "pt2: w.pt"),), "is weights alone, without a model, not of kind exported",
                           "its weights", 3),
    "script as program": (((TORCH, "pt2: script.pt"),), "script.pt is TorchScript", "{torchscript: script.pt}", 3),
    "damaged": (((TORCH, "pt2: judge.npz"),), "judge.npz is not a torch file", "copied", 3),
    "name": ((("image:", "imgae:"),), "forward has no input 'imgae'; it takes image", "did you mean 'image'?", 7),
    "rank": ((("[batch, 3, 8, 8]", "[batch, 3, 8]"),), "the model fails on image float32[5, 3, 8]", "shapes", 3),
    "channels": ((("3, 8, 8", "1, 8, 8"),), "/models/net.py:14 in forward: `return self.head(", "shapes", 3),
    "dtype": ((("8, 8]}", "8, 8], dtype: int64}"),), "the model fails on image int64[5, 3, 8, 8]", "dtypes", 3),
    "outputs": ((("check_on", "outputs: [a, b]\ncheck_on"),), "gives 1 output, but 2 are declared: a, b", "one", 12),
    "size": ((("net.py:build\n  weights: w.safetensors", "net.py:flat"), ("8, 8]", "side, 8]"),
              ("max: 8}", "max: 8}\n  side: {min: 4, opt: 8, max: 16}")), "`return image.flatten(1)", "shapes", 3),
    "range": (((TORCH, "pt2: program.pt2"), ("max: 8", "max: 64")), "'batch' is declared 1..64, but the program was "
              "exported for 1..8", "narrow", 8),
    "static": (((TORCH, "pt2: program.pt2"), ("8, 8]", "side, 8]"), ("max: 8}", "max: 8}\n  side: {min: 4, max: 16}")),
               "axis 2 of input 'image' is declared as 'side', but it is fixed at 8", "write 8", 6),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_source_that_is_not_as_the_recipe_says(repo: Path, tmp_path: Path, case: str) -> None:
    changes, what, hint, line = REFUSED[case]
    recipe = recipe_of(repo, *changes)
    with pytest.raises(SourceError) as caught:
        described(recipe, Cache(tmp_path / "cache"))
    error = caught.value
    assert what.replace("{}", str(repo)) in error.what
    assert hint in error.hint
    assert str(error.where).startswith(f"{repo}/recipe.yaml:{line}:")
    assert error.exit_code == 2
    assert "Traceback" not in str(error)


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a command line, with a cache of its own."""
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    (folder := tmp_path / "at").mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(arguments))
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr


def test_torchscript_goes_to_every_format(repo: Path, at: Path) -> None:
    flags = ["--input", "image[batch,3,8,8]", "--dim", "batch=1:2:4", "--data", str(repo / "judge.npz"), "--jobs", "2"]
    code, said = run("convert", str(repo / "script.pt"), "--to", "onnx", "--to", "openvino", *flags, "-q")
    assert code == 0, said
    report = json.loads((at / "build/script/report.json").read_text())
    assert [step["status"] for step in report["steps"]] == ["passed", "passed"]
    assert report["steps"][0]["notes"]["exporter"] == "torchscript"


def test_onnx_with_external_data_goes_on_and_comes_back_from_its_delivery(at: Path) -> None:
    linear(at / "m.onnx", **EXTERNAL)
    np.savez(at / "x.npz", x=np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32))
    (at / "r.yaml").write_text(
        "version: 1\nname: m\nmodel: {onnx: m.onnx}\ninputs: {x: {shape: [batch, 3], range: [-9, 9]}}\n"
        "dims: {batch: {min: 1, opt: 3, max: 6}}\ndata: {judge: {npz: x.npz}}\ncheck_on: judge\n"
        "steps: [{id: slim, use: onnx.simplify}]\n"
    )
    code, said = run("convert", "r.yaml", "-q", "--jobs", "1")
    assert code == 0, said
    code, said = run("convert", "build/m/slim", "--to", "openvino", "--data", "x.npz", "-q", "--jobs", "1")
    assert code == 0, said
    record = json.loads((at / "build/slim/openvino/optkit.json").read_text())
    assert record["dims"] == {"batch": {"min": 1, "opt": 3, "max": 6}}  # the delivery's own
    assert record["signature"]["inputs"][0]["range"] == [-9, 9]
    assert run("check", "build/m/slim", "build/slim/openvino", "--data", "x.npz", "-q")[0] == 0
    assert run("verify", "build/m/slim", "build/slim/openvino", "-q")[0] == 0
    # An IR is a source too, and is nothing without its weights.
    (at / "ir.yaml").write_text(
        "version: 1\nname: ir\nmodel:\n  openvino: ir/model.xml\ndata: {judge: {npz: x.npz}}\ncheck_on: judge\n"
        "steps: [{id: half, use: openvino.fp16}]\n"
    )
    shutil.copytree(at / "build/slim/openvino", at / "ir")
    code, said = run("convert", "ir.yaml", "-q", "--jobs", "1")
    assert code == 0, said
    (at / "ir/model.bin").unlink()
    code, said = run("convert", "ir.yaml", "-q", "--jobs", "1")
    assert code == 2
    assert "model.xml lies here without model.bin" in said
    assert "ir.yaml:4:3" in said


def test_a_format_that_a_plug_in_brings(toy_plugin: Path, at: Path) -> None:
    toy_kit.folder(at)
    code, said = run("convert", "m.toy", "--to", "toybin", "--data", "judge.npz", "-q", "--jobs", "1")
    assert code == 0, said
    recipe = load_recipe(toy_kit.recipe(at, "  - {id: bin, to: toybin}\n"))
    artifact = source_artifact(recipe, Cache(at / "cache"))
    assert artifact is not None
    assert (artifact.format, artifact.files) == ("toy", ("m.toy",))
    (at / "m.toy").rename(at / "m.json")
    head = toy_kit.HEAD.replace("file: m.toy", "file: m.json, format: toy, files: [side]")
    (at / "side").write_text("1")
    recipe = load_recipe(toy_kit.recipe(at, "  - {id: bin, to: toybin}\n", head))
    beside = source_artifact(recipe, Cache(at / "cache"))
    assert beside is not None
    assert beside.files == ("m.json", "side")
    (at / "side").write_text("2")
    changed = source_artifact(recipe, Cache(at / "cache"))
    assert changed is not None
    assert changed.digest != beside.digest


def test_a_hugging_face_folder_with_its_tokenizer(at: Path) -> None:
    import tokenizers
    import torch
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    logging.disable_progress_bar()
    BertModel(config).save_pretrained(at / "bert")
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *letters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(at / "bert/tokenizer.json"))
    texts = [" ".join(letters[:n]) for n in range(3, 11)]
    (at / "judge.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (at / "r.yaml").write_text(
        "version: 1\nname: bert\nmodel: {huggingface: bert, pooling: mean, normalize: true}\ninputs:\n"
        "  input_ids: {shape: [batch, sequence], dtype: int64, range: [0, 29]}\n"
        "  attention_mask: {shape: [batch, sequence], dtype: int64, range: [0, 1]}\n"
        "outputs: [embedding]\ndims:\n  batch: {min: 1, opt: 2, max: 4}\n  sequence: {min: 2, opt: 8, max: 16}\n"
        "data: {judge: {jsonl: judge.jsonl, tokenizer: bert, text: text, max_length: 16}}\ncheck_on: judge\n"
        "steps: [{id: onnx, to: onnx}]\n"
    )
    recipe, cache = load_recipe(at / "r.yaml"), Cache(at / "cache")
    before = source_artifact(recipe, cache)
    (at / "bert/README.md").write_text("new")
    assert source_artifact(recipe, cache) == before
    code, said = run("convert", "r.yaml", "-q", "--jobs", "1")
    assert code == 0, said
    (at / "bert/config.json").write_text((at / "bert/config.json").read_text() + " ")
    after = source_artifact(recipe, cache)
    assert before is not None
    assert after is not None
    assert after.digest != before.digest


def test_control_flow_names_the_users_line(repo: Path, at: Path) -> None:
    recipe_of(repo, (TORCH, "torch: models/net.py:branch"))
    code, said = run("convert", str(repo / "recipe.yaml"), "-q", "--jobs", "1")
    assert code == 3
    assert "dim 'batch' (1..8) cannot vary as declared" in said
    assert "models/net.py:19 in forward: `if image.shape[0] > 4:`" in said
    assert "recipe.yaml:8:3" in said
    assert not (at / "build/net/onnx").exists()


@pytest.mark.parametrize(
    ("arrays", "what", "hint"),
    [
        ({"x": np.zeros((0, 3), np.float32)}, "has no samples", "is empty"),
        ({"x": np.full((4, 3), np.nan, np.float32)}, "values are not finite (NaN)", "repair"),
        ({"x": np.zeros((4, 3))}, "expected float32, found float64", "astype"),
        ({"x": np.zeros((4, 3), np.uint8)}, "look like raw pixels, 0 to 255", "255"),
        ({"x": np.zeros((4, 2), np.float32)}, "expected shape (3,), found (2,)", "fixed at 3"),
        ({"z": np.zeros((4, 3), np.float32)}, "lacks input 'x'; it has z", "named as the input"),
    ],
)
def test_data_that_does_not_fit(toy_plugin: Path, at: Path, arrays: dict[str, Any], what: str, hint: str) -> None:
    toy_kit.folder(at)
    np.savez(at / "judge.npz", **arrays)
    toy_kit.recipe(at, "  - {id: bin, to: toybin}\n")
    code, said = run("convert", "recipe.yaml", "-q", "--jobs", "1")
    assert code == 2
    assert what in said
    assert hint in said
    assert "at recipe.yaml:7:3" in said
    assert said.count("error:") == 1
    assert not list((at / "build/toy").glob("*/optkit.json"))


def test_data_that_is_fitted_on_and_judged_on(toy_plugin: Path, at: Path) -> None:
    toy_kit.folder(at)
    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    np.savez(at / "fit.npz", x=x[:5])
    np.savez(at / "judge.npz", x=x[4:])
    toy_kit.recipe(at, '  - {id: r, use: toy.round, data: fit, check: ["cosine >= 0.9"]}\n')
    code, said = run("convert", "recipe.yaml", "-q", "--jobs", "1")
    assert code == 2
    assert "1 samples of 'fit' are also in 'judge'" in said
    assert "number 4, number 0 there" in said
    assert "recipe.yaml:6:3" in said
