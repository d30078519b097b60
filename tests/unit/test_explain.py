from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import optkit
from optkit import errors
from optkit.cli import cli
from optkit.errors import OptkitError, from_json
from optkit.explaining import explain, explanations

PACKAGE = Path(optkit.__file__).parent
CODE = re.compile(r"OPK-\d{3}")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["explain", *arguments])


def codes_in_the_package() -> set[str]:
    return {code for path in PACKAGE.rglob("*.py") for code in CODE.findall(path.read_text(encoding="utf-8"))}


def test_every_code_of_the_package_is_documented_and_the_other_way_round() -> None:
    assert codes_in_the_package() - {"OPK-231"} == set(explanations()) - {"OPK-231"}
    # The help of `optkit explain` names one as an example; that it is raised as well is seen where it is.
    assert 'code="OPK-231"' in (PACKAGE / "tasks/groundwork.py").read_text(encoding="utf-8")


def test_what_is_documented_says_something_and_refers_to_codes_and_commands_that_are_there() -> None:
    from optkit.cli import _COMMANDS

    for code, explanation in explanations().items():
        text = "\n".join([explanation.title, explanation.meaning, explanation.why, explanation.do])
        assert len(explanation.title) <= 60, code
        assert all((explanation.meaning, explanation.why, explanation.do)), code
        assert set(CODE.findall(text)) <= set(explanations())
        assert set(re.findall(r"`optkit ([a-z]+)", text)) <= set(_COMMANDS), code
    titles = Counter(e.title for e in explanations().values())
    assert titles.most_common(1)[0][1] == 1


def test_the_first_digit_is_the_exit_code() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, OptkitError)]
    assert len(classes) >= 10
    for cls in classes:
        assert cls.code.startswith(f"OPK-{cls.exit_code}"), cls


def test_an_error_keeps_its_code_on_its_way_from_a_worker() -> None:
    error = errors.DataError("overlap", code="OPK-231")
    assert from_json(error.to_json()).code == "OPK-231"
    assert from_json(errors.StepCrashed("x").to_json()).code == "OPK-301"
    assert from_json({"class": "DataError", "what": "written by an older optkit"}).code == "OPK-230"


def test_explaining_a_code() -> None:
    result = invoke("opk-231")
    assert result.exit_code == 0
    assert result.stdout.startswith("OPK-231  a step would be judged on what it was fitted on\n\n")
    assert "\n\nWhy: A model is always good on" in result.stdout
    assert "\n\nDo:  Split the data" in result.stdout
    assert explain("231") is explain("[OPK-231]")
    two = json.loads(invoke("231", "OPK-301", "--json").stdout)
    assert [e["code"] for e in two] == ["OPK-231", "OPK-301"]


def test_all_codes_are_listed() -> None:
    lines = invoke().stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == sorted(explanations())
    assert len(json.loads(invoke("--json").stdout)) == len(explanations())


def test_an_unknown_code_gets_its_neighbour() -> None:
    result = invoke("OPK-2311")
    assert result.exit_code == 2
    assert "no error has the code 'OPK-2311'\n  did you mean 'OPK-231'?" in result.stderr


RECIPE = """\
version: 1
model: {{onnx: net.onnx}}
data: {{fit: {{random: 3}}, judge: {{random: 2}}}}
check_on: judge
steps: [{}]
"""


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ("{id: a, to: keras}", "OPK-211"),
        ("{id: a, use: onnx.quantize, data: fit}", "OPK-213"),
        ("{id: a, use: onnx.quantize, data: judge, check: [cosine >= 0.9]}", "OPK-231"),
        ("{id: a, to: opnvino}", "OPK-210"),
        ("{id: a, to: nothing}, {id: b, use: onnx.quantize, data: fit}", "OPK-210 OPK-213"),
    ],
)
def test_mistakes_in_a_recipe_end_in_their_codes(
    step: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").touch()
    Path("r.yaml").write_text(RECIPE.format(step))
    result = CliRunner().invoke(cli, ["plan", "r.yaml"])
    assert result.exit_code == 2
    assert result.stderr.endswith(f"  why: optkit explain {code}\n")
