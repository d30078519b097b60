from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.cli.text import Cell, clean, count, has_colour, is_terminal, paint, table, width
from optkit.reports.spelling import duration, size


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text())
def test_clean_leaves_nothing_that_steers_a_terminal(text: str) -> None:
    shown = clean(text)
    steering = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, 0xAD]
    assert not {ord(c) for c in shown} & set(steering)
    shown.encode()  # a lone surrogate of an undecodable path would raise


def test_clean_keeps_what_names_are_made_of() -> None:
    assert clean("größe/日本 [bold]") == "größe/日本 [bold]"
    assert clean("a\x1b[31mb") == r"a\x1b[31mb"
    assert clean("a‮b") == r"a\u202eb"  # a right-to-left override would show a name backwards
    assert clean("a\nb") == r"a\nb"
    assert clean("a\nb", lines=True) == "a\nb"


def test_a_table_is_aligned_by_columns_on_screen() -> None:
    lines = table(
        ("name", "size"), [("日本", "1"), ("abcdef", "22"), (Cell("x", "good"), "3")], io.StringIO()
    ).splitlines()
    assert lines == ["name    size", "日本    1", "abcdef  22", "x       3"]
    assert width("日本") == 4
    assert width("é") == 1


def test_a_table_without_a_terminal_never_breaks_a_line() -> None:
    assert table((), [("a", "word " * 100)], io.StringIO()).count("\n") == 0


def test_a_table_on_a_terminal_wraps_its_last_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    lines = table((), [("a", "word " * 20)], Terminal()).splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 40
    assert all(line.startswith("   ") for line in lines[1:])


def test_a_table_on_a_narrow_terminal_runs_on_below_its_second_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    head = ("step", "pass", "fidelity", "check")
    rows = [("source", "torch", "", ""), ("onnx-int8", "onnx.quantize", "lossy", "cosine >= 0.98, accuracy_drop <= 1")]
    monkeypatch.setenv("COLUMNS", "38")
    assert table(head, rows, Terminal()).splitlines() == [
        "source     torch",
        "onnx-int8  onnx.quantize  lossy",
        "           cosine >= 0.98,",
        "           accuracy_drop <= 1",
    ]
    monkeypatch.setenv("COLUMNS", "20")
    assert table(head, rows, Terminal()).splitlines() == [
        "source",
        "    torch",
        "onnx-int8",
        "    onnx.quantize",
        "    lossy  cosine >=",
        "    0.98,",
        "    accuracy_drop <=",
        "    1",
    ]
    monkeypatch.setenv("COLUMNS", "90")
    assert table(head, rows, Terminal()).splitlines()[0].split() == list(head)


def test_a_closed_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    stream.close()
    assert not is_terminal(stream)
    assert not is_terminal(None)
    assert not has_colour(None)
    assert table(("a",), [("b",)], None) == "a\nb"


def test_colour_needs_a_terminal_and_no_objection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert has_colour(Terminal())
    assert not has_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour(Terminal())
    assert is_terminal(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Terminal())
    assert paint("x", "bad", False) == "x"
    assert paint("x", "bad", True) != "x"


def test_quantities() -> None:
    assert [size(n) for n in (None, 0, 999, 1000, 99_950, 3_400_000, 2.5e9)] == [
        "-", "0 B", "999 B", "1.0 kB", "100 kB", "3.4 MB", "2.5 GB"]  # fmt: skip
    assert [duration(s) for s in (None, 0.421, 12.34, 125, 7500)] == [
        "-", "0.42 s", "12.3 s", "2 min 05 s", "2 h 05 min"]  # fmt: skip
    assert [count(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
