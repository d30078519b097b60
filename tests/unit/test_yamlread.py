"""YAML to plain data: places, mistakes, hostile input, overrides."""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from optkit.errors import Location, RecipeError
from optkit.spec.yamlread import MAX_BYTES, Document, parse_yaml, plain_document, read_yaml, set_value

TEXT = """\
# a comment
name: digits
steps:
  - {id: onnx, to: onnx}
  - id: int8
    check: ["cosine >= 0.99", "kl <= 1"]
    with:
      method: minmax
dims: {batch: {max: 4}}
"""


def problem_of(text: str) -> tuple[int | None, str, str]:
    """Line, message and hint of the one problem in a text."""
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, Path("r.yaml"))
    (problem,) = caught.value.problems
    assert problem.where is not None
    assert problem.where.file == Path("r.yaml")
    return problem.where.line, problem.what, problem.hint


def test_every_value_has_its_place() -> None:
    document = parse_yaml(TEXT, Path("r.yaml"))
    assert document.data["steps"][1]["with"] == {"method": "minmax"}
    places = {
        (): (2, 1),
        ("name",): (2, 1),
        ("steps", 0): (4, 5),
        ("steps", 0, "to"): (4, 16),
        ("steps", 1, "check"): (6, 5),
        ("steps", 1, "check", 1): (6, 31),
        ("steps", 1, "with", "method"): (8, 7),
        ("dims", "batch", "max"): (9, 16),
    }
    for key, (line, column) in places.items():
        assert document.place(key) == Location(Path("r.yaml"), line, column), key


def test_a_key_that_is_not_there_has_the_place_of_what_it_would_be_in() -> None:
    document = parse_yaml(TEXT, Path("r.yaml"))
    assert document.place(("steps", 1, "with", "nothing", "deeper")) == document.place(("steps", 1, "with"))
    assert document.place(("model",)) == document.place(())
    assert Document({}, None).place(("model",)) is None
    assert Document({}, Path("r.yaml")).place(("model",)) == Location(Path("r.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),  # not ninety, as YAML 1.1 has it
        ("1:8:64", "1:8:64"),
        ("1:30.5", "1:30.5"),
        ("0x1F", 31),
        ("1_000", 1000),
        ("yes", True),
        ("'yes'", "yes"),
        ("~", None),
        ("1.5e-3", 0.0015),
        ("[a, 1, {b: c}]", ["a", 1, {"b": "c"}]),
        ("&x {a: &y [1], b: *y}", {"a": [1], "b": [1]}),
        ("\ufeffa: 1", {"a": 1}),
        ("1: one", {"1": "one"}),
        ("null: none", {"null": "none"}),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert parse_yaml(text, None).data == value


@pytest.mark.parametrize(
    ("text", "line", "what", "hint"),
    [
        ("", 1, "empty", "optkit init"),
        ("# only a comment\n", 1, "empty", "optkit init"),
        ("a: 1\nb: c: d\n", 2, "mapping values are not allowed", "quote"),
        ("a:\n\tb: 1\n", 2, "cannot start any token", "spaces, not tabs"),
        ("a: [1, 2\n", 2, "flow sequence", "quote"),
        ("a: 1\na: 2\n", 2, "'a' is given twice", "r.yaml:1:1"),
        ("x:\n  b: 1\n  c: 2\n  b: 3\n", 4, "'b' is given twice", "r.yaml:2:3"),
        ("? [a, b]\n: 1\n", 1, "a key must be a word", "plain text"),
        ("? {a: b}\n: 1\n", 1, "a key must be a word", "plain text"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", 3, "merge keys", "repeat"),
        ("a: *nothing\n", 1, "undefined alias", "quote"),
        ("a: !!python/object:os.system ls\n", 1, "could not determine a constructor", "quotes"),
        ("a: 1\nb: !!int foo\n", 2, "cannot be read", "quotes"),
        ("b: !!bool foo\n", 1, "cannot be read", "quotes"),
        ("b: !!float foo\n", 1, "cannot be read", "quotes"),
        ("b: !!timestamp foo\n", 1, "cannot be read", "quotes"),
        ("b: 2024-13-45\n", 1, "cannot be read", "quotes"),
        ("b: 2024-01-02\n", 1, "reads '2024-01-02' as a date", "quotes"),
        ("b: !!binary aGk=\n", 1, "as a bytes", "quotes"),
        ("b: =\n", 1, "cannot be read", "quotes"),
        ("b: .inf\n", 1, "not finite", "finite number"),
        ("b: -.INF\n", 1, "not finite", "finite number"),
        ("b: .nan\n", 1, "not finite", "finite number"),
        ("b: 1.0e+400\n", 1, "not finite", "finite number"),
        ("b: 99999999999999999999\n", 1, "64 bits", "quotes"),
        ("b: " + "9" * 5000 + "\n", 1, "cannot be read", "quotes"),
        ("a: 1\n---\na: 2\n", 2, "single document", "quote"),
        ("a: 1\nb: \x07\n", 2, "no text", "UTF-8"),
        ("a: 1\nb: \ud800\n", 2, "no text", "UTF-8"),
        ('a: 1\nb: "\\ud800"\n', 2, "invalid Unicode", "quote"),
    ],
)
def test_a_mistake_has_its_line_and_a_remedy(text: str, line: int, what: str, hint: str) -> None:
    found = problem_of(text)
    assert found[0] == line, found
    assert what in found[1]
    assert hint in found[2]


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml("a: .nan\nb: 1\nb: 2\nc: 2024-01-02\n? [x]\n: 1\n", Path("r.yaml"))
    assert [p.where and p.where.line for p in caught.value.problems] == [1, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[" * 1_000_000, "nested over 64 levels"),
        ("{a: " * 1_000_000, "nested over 64 levels"),
        ("".join(f"{' ' * n}a:\n" for n in range(900)), "nested over 64 levels"),
        ("- " * 100_000, "nested over 64 levels"),
        ("a: &a [*a]\n", "nested over 64 levels"),
        ("a: &a {b: *a}\n", "nested over 64 levels"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{n}: &{n} [{', '.join(['*' + b] * 9)}]\n" for b, n in zip("abcdefgh", "bcdefghi", strict=True)),
            "over 100000 values",
        ),
    ],
    ids=["lists", "mappings", "block", "dashes", "itself", "itself in a mapping", "a billion laughs"],
)
def test_hostile_text_is_refused_quickly(text: str, what: str) -> None:
    started = time.process_time()
    assert what in problem_of(text)[1]
    assert time.process_time() - started < 10, "seconds of the processor, however busy the machine is"


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT, encoding="utf-8")
    assert read_yaml(path).data["name"] == "digits"
    assert read_yaml(path).file == path


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("a: 1", encoding="utf-8")
    (tmp_path / "binary.yaml").write_bytes(b"a: 1\nb: \xff\xfe\x00")
    (tmp_path / "utf16.yaml").write_text("a: 1", encoding="utf-16")
    (tmp_path / "big.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for name, what, hint in [
        ("digit.yaml", "there is no recipe at", "did you mean 'digits.yaml'?"),
        ("nowhere/digits.yaml", "there is no recipe at", "check the path"),
        (".", "is a folder", "name the .yaml file"),
        ("digits.yaml/x", "cannot be read", "check the path"),
        ("binary.yaml", "not UTF-8", "save it as UTF-8"),
        ("utf16.yaml", "not UTF-8", "save it as UTF-8"),
        ("big.yaml", "over 1 MiB", "kilobytes"),
        ("a\0b", "cannot be read", "check the path"),
        ("x" * 300, "cannot be read", "check the path"),
        ("/dev/zero", "over 1 MiB", "kilobytes"),
    ]:
        with pytest.raises(RecipeError) as caught:
            read_yaml(tmp_path / name)
        (problem,) = caught.value.problems
        assert what in problem.what, name
        assert hint in problem.hint, name
    with pytest.raises(RecipeError, match=r"binary\.yaml:2"):
        read_yaml(tmp_path / "binary.yaml")


def test_plain_data_from_a_program() -> None:
    data = {"a": (1, 2), "b": PurePosixPath("x/y"), 3: np.float32(0.5), "c": {"d": np.int64(4)}, "e": None}
    assert plain_document(data).data == {"a": [1, 2], "b": "x/y", "3": 0.5, "c": {"d": 4}, "e": None}


def test_data_that_no_recipe_can_hold() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    with pytest.raises(RecipeError, match="part of itself"):
        plain_document(loop)
    with pytest.raises(RecipeError) as caught:
        plain_document({"a": {"b": float("nan")}, "c": [object()], "d": np.zeros(3), "e": b"x"})
    assert [p.what.split(":")[0] for p in caught.value.problems] == ["a.b", "c.0", "d", "e"]


# --- overrides


def changed(assignment: str, text: str = TEXT) -> Any:
    document = parse_yaml(text, Path("r.yaml"))
    set_value(document, assignment)
    return document.data


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("name=other", ("name",), "other"),
        ("name=", ("name",), ""),
        ("name=a=b", ("name",), "a=b"),
        ("seed=7", ("seed",), 7),
        ("steps.int8.with.method=percentile", ("steps", 1, "with", "method"), "percentile"),
        ("steps.int8.with.per_channel=false", ("steps", 1, "with", "per_channel"), False),
        ("steps.int8.check=[a, b]", ("steps", 1, "check"), ["a", "b"]),
        ("steps.1.check.0=x", ("steps", 1, "check", 0), "x"),
        ("steps.onnx.with.a.b=1", ("steps", 0, "with", "a", "b"), 1),
        ("steps.onnx={id: onnx}", ("steps", 0), {"id": "onnx"}),
        ("dims.batch.max=8", ("dims", "batch", "max"), 8),
        ("dims.seq.max=8", ("dims", "seq", "max"), 8),
    ],
)
def test_an_override(assignment: str, key: tuple[str | int, ...], value: Any) -> None:
    data = changed(assignment)
    for part in key:
        data = data[part]
    assert data == value


def test_a_step_id_may_hold_dots_and_look_like_a_number() -> None:
    text = "steps:\n- {id: a.b}\n- {id: a.b.c}\n- {id: '7'}\n- {id: '0'}\n"
    assert changed("steps.a.b.to=x", text)["steps"][0] == {"id": "a.b", "to": "x"}
    assert changed("steps.a.b.c.to=x", text)["steps"][1] == {"id": "a.b.c", "to": "x"}
    assert changed("steps.7.to=x", text)["steps"][2] == {"id": "7", "to": "x"}
    assert changed("steps.0.to=x", text)["steps"][3] == {"id": "0", "to": "x"}


def test_an_override_into_an_empty_key() -> None:
    assert changed("dims.batch.max=4", "dims:\nname: a\n")["dims"] == {"batch": {"max": 4}}


def test_an_override_is_the_place_of_what_it_set() -> None:
    document = parse_yaml(TEXT, Path("r.yaml"))
    set_value(document, "dims={batch: {max: 0}}")
    assert str(document.place(("dims", "batch", "max"))) == "--set dims={batch: {max: 0}}"
    assert str(document.place(("steps", 0))) == "r.yaml:4:5"


@pytest.mark.parametrize(
    ("assignment", "what", "hint"),
    [
        ("name", "needs key=value", "steps.int8.with.per_channel=false"),
        ("=1", "needs key=value", "steps.int8"),
        ("steps..a=1", "needs key=value", "steps.int8"),
        (".=1", "needs key=value", "steps.int8"),
        ("steps.int9.to=x", "nothing here is called 'int9'", "did you mean 'int8'?"),
        ("steps.5.to=x", "nothing here is called '5'", "onnx"),
        ("steps.².to=x", "nothing here is called '²'", "int8"),
        ("steps.int8.check.9=x", "nothing here is called '9'", "it has 2 items"),
        ("name.first=x", "name holds a value, not keys", "shorten"),
        ("steps.int8.check.0.a=x", "steps.1.check.0 holds a value", "shorten"),
        ("name=[1", "not valid YAML", "quote"),
        ("name=#", "empty", ""),
        ("name=" + "[" * 100, "nested over", ""),
        ("seed=.inf", "not finite", "finite"),
    ],
)
def test_an_override_that_cannot_be_applied(assignment: str, what: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed(assignment)
    (problem,) = caught.value.problems
    assert what in problem.what
    assert hint in problem.hint
    assert "--set" in str(problem)


def test_an_override_of_a_recipe_that_is_a_list_or_a_word() -> None:
    assert changed("1=x", "[a, b]") == ["a", "x"]
    with pytest.raises(RecipeError, match="the recipe holds a value"):
        changed("a=x", "word")
    with pytest.raises(RecipeError, match="nothing here is called 'a'"):
        changed("a=x", "- {id: [1]}\n- {id: {b: c}}\n- 3\n")
