from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pydantic import Field

from optkit.cli import cli
from optkit.cli.passes import example, option_rows, type_text
from optkit.plugin import Options, Pass
from optkit.registry import passes


class Some(Options):
    mode: str | None = Field(None, description="free text")
    bits: int = Field(8, ge=2, le=8, description="how many bits")
    share: float | None = Field(None, gt=0, description="a share")
    names: list[str] = Field([], description="some names")
    must: bool = Field(description="has no default")


SOME = Pass(
    "onnx.some", 1, "onnx", "onnx", "does something", lambda *_: {}, options=Some, fidelity="lossy", needs_data=True
)


def test_the_table_has_every_pass() -> None:
    result = CliRunner().invoke(cli, ["passes"])
    assert result.exit_code == 0
    for use in passes().values():
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"{use.name} "))
        assert f"{use.source} -> {use.target}" in line
        assert use.fidelity in line
        assert line.endswith(use.summary[1:])


@pytest.mark.parametrize("name", ["openvino.quantize", "onnx.to_openvino"])
def test_one_pass_is_explained(name: str) -> None:
    result = CliRunner().invoke(cli, ["passes", name])
    assert result.exit_code == 0
    for field, info in passes()[name].options.model_fields.items():
        assert f"  {info.alias or field} " in result.stdout
        assert (info.description or "") in result.stdout
    assert f"use: {name}" in result.stdout


def test_an_unknown_pass() -> None:
    result = CliRunner().invoke(cli, ["passes", "openvino.quantise"])
    assert result.exit_code == 2
    said = "error: unknown pass 'openvino.quantise'\n  did you mean 'openvino.quantize'?\n"
    assert result.stderr == f"{said}  why: optkit explain OPK-200\n"


def test_json() -> None:
    listed = json.loads(CliRunner().invoke(cli, ["passes", "--json"]).stdout)
    assert [p["name"] for p in listed] == list(passes())
    one = json.loads(CliRunner().invoke(cli, ["passes", "openvino.quantize", "--json"]).stdout)
    assert one["fidelity"] == "lossy"
    assert "properties" in one["options"]


def test_options_are_told_in_words() -> None:
    assert option_rows(SOME) == [
        ("mode", "text", "-", "free text"),
        ("bits", "integer 2 to 8", "8", "how many bits"),
        ("share", "number > 0", "-", "a share"),
        ("names", "list of text", "[]", "some names"),
        ("must", "true | false", "required", "has no default"),
    ]
    assert type_text({"enum": ["a", "b"]}, {}) == "a | b"


def test_examples_are_recipes_that_plan(tmp_path: Path) -> None:
    """Every pass's example, put on a source of its format, is planned without a mistake."""
    from optkit.planning import make_plan
    from optkit.recipe import recipe_from

    models = {"onnx": {"onnx": "m.onnx"}, "openvino": {"openvino": "m.xml"}, "torch": {"pt2": "m.pt2"},
              "tflite": {"file": "m.tflite"}, "savedmodel": {"savedmodel": "saved"}, "keras": {"keras": "m.keras"},
              "tf_graph": {"tf_graph": "m.pb", "inputs": ["x"], "outputs": ["y"]}}  # fmt: skip
    (tmp_path / "saved").mkdir()
    for file in ("m.onnx", "m.xml", "m.bin", "m.pt2", "m.tflite", "m.keras", "m.pb", "saved/saved_model.pb",
                 "train.py"):  # fmt: skip
        (tmp_path / file).touch()
    for use in passes().values():
        steps = yaml.safe_load(example(use))["steps"]
        steps[0]["from"] = "source"
        data = {"fit": {"random": 8, "seed": 1}, "judge": {"random": 8}}
        recipe = {"version": 1, "model": models[use.source], "data": data, "check_on": "judge", "steps": steps}
        assert make_plan(recipe_from(recipe, tmp_path)).steps[-1].use is use
    assert yaml.safe_load(example(SOME))["steps"][0]["with"] == {"must": True}, "what it cannot do without"


def test_the_page_of_all_passes_is_current() -> None:
    result = CliRunner().invoke(cli, ["passes", "--markdown"])
    assert result.exit_code == 0
    for use in passes().values():
        assert f"\n## {use.name}\n" in result.stdout
        assert f"\n{example(use)}\n```\n" in result.stdout
    page = Path(__file__).resolve().parents[2] / "docs/passes.md"
    assert page.read_text(encoding="utf-8") == result.stdout, "optkit passes --markdown > docs/passes.md"


def test_the_page_of_all_passes_takes_nothing_beside_it() -> None:
    for more in (["onnx.fp16"], ["--json"]):
        result = CliRunner().invoke(cli, ["passes", "--markdown", *more])
        assert result.exit_code == 2
        assert "leave NAME and --json out" in result.stderr
