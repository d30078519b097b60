"""Every mistake that planning can find: its line, its words, a remedy, and nothing told twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from planning_kit import GOOD, TOY, fill, problems_of

from optkit.artifact import Dim
from optkit.errors import RecipeError
from optkit.planning import make_plan
from optkit.recipe import load_recipe, recipe_from, recipe_from_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("plan"))


# What is changed in the good recipe, the mistake's line, words of its message, words of its remedy.
SWAPS = [
    # the recipe as a whole
    ("version: 1", "version: 2", 1, "recipe version 2 is not known", "version: 1"),
    ("version: 1", "version: true", 1, "recipe version True", "version: 1"),
    ("version: 1\n", "", 1, "needs `version: 1`", "version: 1"),
    ("name: digits", "name: a/b", 2, "cannot be a folder's name", "letters, digits"),
    ("name: digits", "name: ..", 2, "cannot be a folder's name", "letters, digits"),
    ("name: digits", "name: 5", 2, "should be a word, got 5", "quotes"),
    ("deliver:", "sede: 3\ndeliver:", 20, "unknown key 'sede'", "did you mean 'seed'?"),
    ("deliver:", "deliverables: [ov]\ndeliver:", 20, "unknown key 'deliverables'", "deliver"),
    ("deliver:", "seed: -1\ndeliver:", 20, "seed: got -1", "whole number from 0"),
    ("deliver:", "seed: 1.5\ndeliver:", 20, "seed: got 1.5", "whole number"),
    ("deliver:", "seed: ~\ndeliver:", 20, "seed: got None", "whole number"),
    ("deliver:", "threads: 0\ndeliver:", 20, "threads: got 0", "from 1"),
    ("deliver:", "threads: yes\ndeliver:", 20, "threads: got True", "whole number"),
    ("deliver:", "device: 0\ndeliver:", 20, "device: should be a word", "quotes"),
    ("outputs: [logits]", "outputs: logits", 8, "outputs: should be a list of names", "outputs: [first, second]"),
    ("outputs: [logits]", "outputs: [a, b, a]", 8, "'a' is listed twice", "keep one"),
    # the model
    ("  torch: net.py:build\n  weights", "  weights", 3, "names no kind of source", "one of: torch, pt2"),
    ("torch: net.py:build", "troch: net.py:build", 3, "names no kind of source", "did you mean 'torch'?"),
    ("torch: net.py:build", "torch: net.py:build\n  onnx: m.onnx", 3, "names 2 kinds of source: torch, onnx", "one of"),
    ("torch: net.py:build", "torch: net.py", 4, "is not FILE.py:NAME", "models/net.py:build"),
    ("torch: net.py:build", "torch: 'net.py:'", 4, "is not FILE.py:NAME", "models/net.py:build"),
    ("torch: net.py:build", "torch: net.pt2", 4, "is not FILE.py:NAME", "pt2: in place of torch:"),
    ("torch: net.py:build", "torch: net.safetensors", 4, "is not FILE.py:NAME", "and weights: with this file"),
    ("torch: net.py:build", "torch: nte.py:build", 4, "there is no file", "did you mean 'net.py'?"),
    ("torch: net.py:build", "torch: x/y/net.py:build", 4, "there is no file", "folder"),
    ("torch: net.py:build", "torch: package:nope/net.py:build", 4, "package 'nope' is not installed", "pip install"),
    ("torch: net.py:build", "torch: 'package:a-b/net.py:build'", 4, "names no package", "package:NAME"),
    ("torch: net.py:build", "torch: '~nosuchuser/net.py:build'", 4, "home directory", "in full"),
    ("torch: net.py:build", "torch: [net.py]", 4, "model.torch: should be a valid string", "FILE.py:NAME"),
    ("net.safetensors", "net.safetensor", 5, "there is no file", "did you mean 'net.safetensors'?"),
    ("net.safetensors", "notes.txt", 5, "is of no known kind", ".safetensors, .pt or .pth"),
    ("net.safetensors", "'" + "x" * 300 + "'", 5, "is no path", "recipe's folder"),
    ("net.safetensors", '"a\\0b"', 5, "there is no file", "recipe's folder"),
    ("weights: net", "wieghts: net", 5, "model: unknown key 'wieghts'", "did you mean 'weights'?"),
    ("net.safetensors", "net.safetensors\n  files: [a.json]", 6, "model.files: there is no file", "recipe's folder"),
    ("net.safetensors", "net.safetensors\n  trust_pickle: 1", 6, "should be a valid boolean", "code-running"),
    # inputs and dims
    ("shape: [batch, 1,", "shpae: [batch, 1,", 7, "unknown key 'shpae'", "did you mean 'shape'?"),
    ("[batch, 1, 32, 32]", "[bach, 1, 32, 32]", 7, "the dim 'bach' has no range", "did you mean 'batch'?"),
    ("[batch, 1, 32, 32]", "[batch, 0, 32, 32]", 7, "size must be at least 1", "with a word"),
    ("[batch, 1, 32, 32]", "[-1, 1, 32, 32]", 7, "size must be at least 1, got -1", "with a word"),
    ("[batch, 1, 32, 32]", "[batch, 1.5, 32, 32]", 7, "neither a size nor a dim's name", "whole number"),
    ("[batch, 1, 32, 32]", "[batch, yes, 32, 32]", 7, "True is neither", "whole number"),
    ("[batch, 1, 32, 32]", "['a b', 1, 32, 32]", 7, "cannot name a dim", "letters"),
    ("[batch, 1, 32, 32]", "32", 7, "32 is no list of axes", "[batch, 3, 224, 224]"),
    ("layout: NCHW", "dtype: flaot32", 7, "unknown dtype 'flaot32'", "did you mean 'float32'?"),
    ("layout: NCHW", "layout: NCH", 7, "layout NCH has 3 letters for 4 axes", "one per axis"),
    ("layout: NCHW", "range: [1, 0]", 7, "is no range", "[smallest, largest]"),
    ("layout: NCHW", "range: 3", 7, "inputs.image.range", "smallest and largest"),
    ("image: {shape: [batch, 1, 32, 32], layout: NCHW}", "image:", 7, "should be a mapping", "its keys are: shape"),
    ("  image: {shape", "  '': {shape", 6, "a name is empty", "name"),
    ("  batch: {min: 1, opt: 8, max: 64}\n", "  {}\n", 7, "'batch' has no range", "dims: {batch: {min: 1"),
    ("opt: 8, max: 64", "opt: 8, max: 4", 10, "min <= opt <= max, got 1, 8, 4", "{min: 1, opt: 8, max: 64}"),
    ("min: 1, opt: 8, max: 64", "min: 9, max: 4", 10, "needs min <= max, got 9, 4", "{min: 1"),
    ("min: 1, opt: 8, max: 64", "min: 0, max: 4", 10, "dims.batch.min: should be greater", "smallest size"),
    ("min: 1, opt: 8, max: 64", "min: 1", 10, "lacks the key 'max'", "largest size"),
    ("min: 1, opt: 8, max: 64", "max: 4.5", 10, "should be a valid integer", "largest size"),
    ("min: 1, opt: 8, max: 64", "max: yes", 10, "should be a valid integer", "largest size"),
    ("batch: {min: 1, opt: 8, max: 64}", "batch: 1:8:64", 10, "should be a mapping", "min, opt, max"),
    ("max: 64}", "max: 64}\n  seq: {max: 4}", 11, "no input has a dim of this name", "one of: batch"),
    # data
    ("npz: fit.npz", "npz: fti.npz", 12, "fti.npz does not exist", "did you mean 'fit.npz'?"),
    ("{npz: fit.npz}", "\n    npz: fti.npz\n    limit: 3", 13, "fti.npz does not exist", "did you mean 'fit.npz'?"),
    ("npz: fit.npz", "nzp: fit.npz", 12, "needs one of npz, images", "did you mean 'npz'?"),
    ("npz: fit.npz", "npz: fit.npz, images: .", 12, "npz and images", "two datasets"),
    ("npz: fit.npz", "npz: fit.npz, lable: x", 12, "has no key 'lable'", "did you mean 'label'?"),
    ("npz: fit.npz", "npz: 3", 12, "data.fit.npz: should be a valid string", ""),
    ("npz: fit.npz", 'npz: "a\\0b"', 12, "data.fit", ""),
    ("npz: fit.npz", "npz: '~nosuchuser/x'", 12, "home directory", "recipe's folder"),
    ("npz: fit.npz", "npz: '" + "x" * 300 + "'", 12, "cannot be used", "recipe's folder"),
    ("npz: fit.npz", "python: 'net.py'", 12, "names no callable", "file.py:name"),
    ("npz: fit.npz", "python: 'nte.py:f'", 12, "does not exist", "did you mean 'net.py'?"),
    ("{npz: fit.npz}", "fit.npz", 12, "data.fit: should be a mapping", "{npz: FILE}"),
    ("data:\n  fit: {npz: fit.npz}\n  judge: {npz: judge.npz}\n", "data: judge.npz\n", 11, "mapping of names", "data:"),
    ("check_on: judge\n", "", 11, "does not say which data its checks run on", "check_on: judge"),
    ("check_on: judge", "check_on: jugde", 14, "there is no dataset 'jugde'", "did you mean 'judge'?"),
    ("check_on: judge", "check_on: [judge]", 14, "check_on: should be a word", "quotes"),
    ("check_on: judge", "chek_on: judge", 14, "unknown key 'chek_on'", "did you mean 'check_on'?"),
    # steps: which
    ("steps:\n", "steps:\n  - {id: p, use: torch.prune, with: {latency: 60%, runtime: onx}, check: [cosine >= 0]}\n",
     16, "step p: unknown format 'onx'", "did you mean 'onnx'?"),
    ("steps:\n", "steps:\n  - {id: p, use: torch.prune, with: {latency: 60%, runtime: keras}, check: [cosine >= 0]}\n",
     16, "step p: no conversion leads from torch to keras", "you can reach: "),
    ("id: ov,", "id: onnx,", 19, "two steps are called 'onnx'", ":16:6; rename one"),
    ("{id: ov, from", "{id: source, from", 19, "'source' is the source model's own id", "otherwise"),
    ("{id: ov, from", "{id: logs, from", 19, "has a logs of its own", "otherwise"),
    ("{id: ov, from", "{id: report.json, from", 19, "has a report.json of its own", "otherwise"),
    ("{id: ov, from", "{id: a b, from", 19, "step a b: id: 'a b' has characters", "letters, digits"),
    ("{id: ov, from", "{id: -a, from", 19, "step -a: id: '-a' has characters", "letters, digits"),
    ("{id: ov, from", "{id: 7, from", 19, "should be a valid string, got 7", "quotes"),
    ("{id: ov, from", "{id: [x], from", 19, "should be a valid string", "the step's name"),
    ("{id: ov, from", "{from", 19, "lacks the key 'id'", "the step's name"),
    ("{id: ov, from: slim, to: openvino}", "ov", 19, "steps[3]: should be a mapping, got 'ov'", "its keys are: id"),
    ("{id: ov, from: slim, to: openvino}", "~", 19, "should be a mapping, got None", "its keys are: id"),
    ("id: ov, from: slim", "id: ov, form: slim", 19, "step ov: unknown key 'form'", "did you mean 'from'?"),
    ("id: ov, from: slim", "id: ov, from: slmi", 19, "there is no step 'slmi'", "did you mean 'slim'?"),
    ("id: ov, from: slim", "id: ov, from: ov", 19, "wait for one another: ov -> ov", "must come from 'source'"),
    ("id: onnx, to: onnx", "id: onnx, from: slim, to: onnx", 16, "another: slim -> onnx -> slim", "source"),
    ("deliver: [int8, ov]", "deliver: [int8, vo]", 20, "there is no step 'vo'", "one of: int8, onnx, ov, slim"),
    ("deliver: [int8, ov]", "deliver: [ov, ov]", 20, "'ov' is listed twice", "keep one"),
    ("deliver: [int8, ov]", "deliver: ov", 20, "should be a list of names", "deliver: [first"),
    ("deliver: [int8, ov]", "deliver: [1]", 20, "should be a list of names", "deliver: [first"),
    # steps: what
    ("to: openvino", "use: opnvino.fp16", 19, "there is no pass 'opnvino.fp16'", "did you mean 'openvino.fp16'?"),
    ("to: openvino", "to: opnvino", 19, "there is no format 'opnvino'", "did you mean 'openvino'?"),
    ("to: openvino", "to: onnx", 19, "'slim' is onnx already", "with `use:`"),
    ("to: openvino", "to: torch", 19, "no conversion leads from onnx to torch", "you can reach: edgetpu,"),
    ("from: slim, to: openvino", "use: onnx.simplify", 19, "takes onnx, but 'source' gives torch", "to: onnx"),
    ("to: openvino", "use: openvino.fp16", 19, "openvino.fp16 takes openvino, but 'slim' gives onnx", "to: openvino"),
    (", to: openvino", "", 19, "needs either `to: FORMAT` or `use: PASS`", "to: onnx"),
    ("to: openvino", "to: openvino, use: onnx.simplify", 19, "PASS`, not both", "to: onnx"),
    ("to: openvino", "to: openvino, python: nowhere", 19, "python: there is no file", "folder"),
    ("to: openvino", "python: train.py:train", 19, "not a function, got 'train.py:train'", "call: 'train.py:train'"),
    ("to: openvino", "use: 'python:train.py:go'", 19, "there is no pass", "torch.train, with: {call: 'train.py:go'}"),
    ("to: openvino", "to: openvino, timeout: 0", 19, "should be greater than 0", "seconds after which"),
    ("to: openvino", "to: openvino, timeout: soon", 19, "should be a valid number", "seconds after which"),
    ("to: openvino", "to: openvino, with: [a]", 19, "step ov: with: should be a mapping", "options"),
    ("to: openvino", "to: openvino, with: {dims: 1}", 19, "(onnx.to_openvino): unknown key 'dims'", "bound_dims"),
    ("to: openvino", "to: openvino, with: {bound_dims: 7}", 19, "bound_dims: should be a valid boolean", "ranges"),
    # steps: data
    (", data: fit", "", 18, "onnx.quantize needs data to fit on", "datasets: fit, judge"),
    ("data: fit", "data: judge", 18, "would be fitted on 'judge', the data it is judged on", "of its own"),
    ("npz: fit.npz", "npz: judge.npz", 18, "would be fitted on 'fit', the data it is judged on", "of its own"),
    ("data: fit", "data: fitt", 18, "there is no dataset 'fitt'", "did you mean 'fit'?"),
    ("to: openvino", "to: openvino, data: fit", 19, "onnx.to_openvino takes no data", "remove `data:`"),
    # steps: checks
    (', check: ["cosine >= 0.99"]', "", 18, "loses accuracy, so it must state its bounds", "waive: with the reason"),
    ('["cosine >= 0.99"]', '"cosine >= 0.99"', 18, "check: should be a list", "put it in brackets: ["),
    ('["cosine >= 0.99"]', "[0.99]", 18, "check.0: should be a valid string", "quotes"),
    ('["cosine >= 0.99"]', '["cosin >= 0.99"]', 18, "unknown metric 'cosin'", "did you mean cosine?"),
    ('["cosine >= 0.99"]', '["cosine <= 0.99"]', 18, "better when higher", "write cosine >= 0.99"),
    ('["cosine >= 0.99"]', '["cosine > 0.99"]', 18, "has >= or <=", "write cosine >= 0.99"),
    ('["cosine >= 0.99"]', '["cosine >= 1.5"]', 18, "no model meets this", "inside -1 to 1"),
    ('["cosine >= 0.99"]', '["cosine >= 0.9", "accuracy >= 9%"]', 18, "data.judge has none", "label: NAME"),
    ('["cosine >= 0.99"]', '["logit.cosine >= 0.9"]', 18, "names no output of the model", "did you mean 'logits'?"),
    ('check: ["cosine >= 0.99"]', "waive: ''", 18, "is no reason", "write a sentence"),
    ('check: ["cosine >= 0.99"]', "waive: todo", 18, "'todo' is no reason", "write a sentence"),
    ('0.99"]', '0.99"], waive: not needed here', 18, "has both check: and waive:", "keep one"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "what", "hint"), SWAPS, ids=[f"{n}" for n in range(len(SWAPS))])
def test_one_mistake(old: str, new: str, line: int, what: str, hint: str, folder: Path) -> None:
    assert GOOD.count(old) >= 1
    good = GOOD.replace("deliver: [int8, ov]\n", "") if "id: ov" in old else GOOD
    found = problems_of(good.replace(old, new, 1), folder)
    assert len(found) == 1, found
    assert found[0][0] == line, found
    assert what in found[0][1], found
    assert hint in found[0][2], found
    assert found[0][2], "a remedy"


HEAD = "version: 1\nmodel: {onnx: m.onnx}\n"
DATA = "data: {j: {random: 3}}\ncheck_on: j\n"
STEPS = "steps: [{id: a, to: openvino}]\n"
TORCH = "inputs: {x: {shape: [1]}}\n" + DATA + STEPS


@pytest.mark.parametrize(
    ("text", "line", "what", "hint"),
    [
        ("[a, b]", 1, "a recipe is a mapping, this is a list", "version: 1"),
        ("a word", 1, "a recipe is a mapping, this is a str", "version: 1"),
        (HEAD + DATA, 1, "has no steps", "steps:"),
        (HEAD + DATA + "steps: {}\n", 5, "has no steps", "steps:"),
        (HEAD + DATA + "steps: {a: b}\n", 5, "steps: should be a list", "steps:"),
        (HEAD + DATA + "steps: 0\n", 5, "has no steps", "steps:"),
        (HEAD + STEPS, 1, "nothing could be checked", "data:"),
        ("version: 1\n" + DATA + STEPS, 1, "names no model", "model:"),
        (HEAD.replace("{onnx: m.onnx}", "m.onnx") + DATA + STEPS, 2, "should be a mapping", "one of"),
        (HEAD.replace("m.onnx", "om.onnx") + DATA + STEPS, 2, "there is no file", "did you mean 'm.onnx'?"),
        (HEAD.replace("onnx: m.onnx", "pickle: m.onnx") + TORCH, 2, "runs code from its file", "trust_pickle: true"),
        (HEAD.replace("onnx:", "huggingface:") + TORCH, 2, "there is no folder", "it is a file"),
        (HEAD.replace("onnx: m.onnx", "huggingface: ., pooling: maen") + TORCH, 2, "'maen' is not", "'mean'?"),
        (HEAD.replace("onnx: m.onnx", "torch: net.py:build") + DATA + STEPS, 2, "does not say what goes", "inputs:"),
    ],
)
def test_recipes_without_a_part(text: str, line: int, what: str, hint: str, folder: Path) -> None:
    found = problems_of(text, folder)
    assert len(found) == 1, found
    assert (found[0][0], what in found[0][1], hint in found[0][2]) == (line, True, True), found


@pytest.mark.parametrize(
    ("model", "step", "what", "hint"),
    [
        (
            "{file: m.toy}",
            "to: toyend",
            "there are 2 equally short ways from toy to toyend: toy.to_toybin -> ",
            "`use:`",
        ),
        ("{file: m.toy}", "to: onnx", "no conversion leads from toy to onnx", "toybin, toyend, toyleft"),
        ("{file: m.toy}", "to: toyleft", "no runner opens toyleft", "install the plug-in"),
        ("{file: m.toy}", "to: toypak", "there is no format 'toypak'", "did you mean 'toypack'?"),
        ("{file: m.other}", "to: toybin", "no runner knows a file called 'm.other'", "toy, toybin, toypack"),
        ("{file: m.other, format: tyo}", "to: toybin", "no runner opens 'tyo'", "did you mean 'toy'?"),
        ("{file: m.onnx, format: onnx}", "to: openvino", "has a kind of source of its own", "{onnx: ...}"),
        ("{file: m.toy, files: [a/b]}", "to: toybin", "is no bare file name", "beside"),
        ("{file: m.toy, files: [b]}", "to: toybin", "there is no file", ""),
        ("{file: m.toy}", "use: toy.round, check: ['kl <= 1']", "toy.round needs data", "datasets: fit, judge"),
    ],
)
def test_mistakes_with_a_plugin(model: str, step: str, what: str, hint: str, folder: Path, toy_plugin: Path) -> None:
    text = TOY.replace("{file: m.toy}", model) + f"- {{id: a, {step}}}\n"
    found = problems_of(text, folder)
    assert len(found) == 1, found
    assert what in found[0][1], found
    assert hint in found[0][2], found


def test_five_mistakes_are_five_problems_in_the_files_order(folder: Path) -> None:
    text = GOOD.replace("net.safetensors", "nte.safetensors").replace("npz: fit.npz", "npz: fti.npz")
    text = (
        text.replace("version: 1", "version: 3").replace("cosine >=", "cosin >=").replace("to: openvino", "to: torch")
    )
    assert [line for line, _, _ in problems_of(text, folder)] == [1, 5, 12, 18, 19]


def test_what_reading_and_what_planning_finds_is_told_together(folder: Path) -> None:
    text = GOOD.replace("layout: NCHW", "lyout: NCHW, dtype: int")  # reading
    text = text.replace("max: 64", "max: many").replace("data: fit", "data: fti")  # reading, planning
    text = text.replace("use: onnx.simplify", "use: onnx.simplify, wth: {}, with: {a: 1}")  # both in one step
    text = text.replace("deliver: [int8", "deliver: [int9").replace("net.py:build", "no.py:build")  # planning
    found = problems_of(text, folder)
    assert [(line, what.split(":")[0]) for line, what, _ in found] == [
        (4, "model.torch"),
        (7, "inputs.image"),
        (7, "inputs.image.dtype"),
        (10, "dims.batch.max"),
        (17, "step slim"),
        (17, "step slim (onnx.simplify)"),
        (18, "step int8"),
        (20, "deliver"),
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  - {id: onnx, to: onnx}", "  - {id: onnx, to: onxx}"),  # its children stand on nothing
        ("  - {id: onnx, to: onnx}", "  - {id: onnx, use: torch.to_onxx}"),
        ("  - {id: onnx, to: onnx}", "  - {id: onnx, to: onnx, with: {a: 1}}"),
        ("  - {id: onnx, to: onnx}", "  - [onnx]"),
        ("id: slim, from: onnx", "id: slim, from: nothing"),
        ("model:\n  torch: net.py:build\n  weights: net.safetensors\n", "model: 3\n"),
        ("  judge: {npz: judge.npz}", "  judge: {npz: 3}"),
        ("  fit: {npz: fit.npz}", "  fit: 3"),
    ],
)
def test_what_hangs_on_a_mistake_is_none_of_its_own(old: str, new: str, folder: Path) -> None:
    found = problems_of(GOOD.replace(old, new), folder)
    assert len(found) == 1, found


def test_a_mistake_after_a_broken_step_is_still_found(folder: Path) -> None:
    text = (
        GOOD.replace("to: onnx}", "to: onnx, with: {a: 1}}").replace("0.99", "9.9").replace("to: openvino", "to: torch")
    )
    assert [line for line, _, _ in problems_of(text, folder)] == [16, 18, 19]


def test_the_same_dims_in_a_circle_of_three(folder: Path) -> None:
    text = GOOD.replace("id: onnx, to: onnx", "id: onnx, from: ov, to: onnx")
    (line, what, _), *rest = problems_of(text, folder)
    assert (line, rest) == (16, [])
    assert what == "these steps wait for one another: slim -> ov -> onnx -> slim" or "onnx" in what


def test_recipes_from_a_program_have_problems_without_places(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from({"version": 1, "model": {"onnx": "m.onnx"}, "steps": [{"id": "a", "too": "openvino"}] * 2}, folder)
    assert all(p.where is None and p.hint for p in caught.value.problems)
    assert len(caught.value.problems) == 4  # the key twice, the repeated id, no data


def test_planning_a_recipe_with_dims_its_file_may_know(folder: Path) -> None:
    recipe = recipe_from_text(
        "version: 1\nmodel: {onnx: m.onnx}\ndims: {n: {max: 4}}\ndata: {j: {random: 3}}\ncheck_on: j\n"
        "steps: [{id: a, to: openvino}]\n",
        folder,
    )
    assert recipe.dims == {"n": Dim(1, 2, 4)}
    assert make_plan(recipe).deliver == ("a",)


def test_a_recipe_on_disk_has_its_file_in_every_place(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(GOOD.replace("to: openvino", "to: x").replace("check_on: judge", "check_on: x"), encoding="utf-8")
    recipe = load_recipe(path)
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe)
    assert [str(p.where) for p in caught.value.problems] == [f"{path}:14:1", f"{path}:19:26"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('check: ["cosine >= 0.99"]}\n  - {id: ov, from: slim', "waive: measured by hand}\n  - {id: ov, from: int8"),
        ("{id: ov, from: slim, to: openvino}",
         "{id: small, use: torch.prune, with: {remove_macs: 20%}, waive: looked at by hand}\n"
         "  - {id: ov, from: small, to: tensorrt, on_target: true}"),
    ],
    ids=["quantised", "judged elsewhere"],
)  # fmt: skip
def test_after_waived_bounds_a_conversion_needs_its_own(old: str, new: str, folder: Path) -> None:
    found = problems_of(GOOD.replace(old, new), folder)
    assert ["nothing says how near it has to be" in what for _, what, _ in found] == [True], found
    assert found[0][2] == 'add check: ["cosine >= 0.99"], or waive: with the reason'
