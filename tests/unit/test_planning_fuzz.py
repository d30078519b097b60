"""Whatever a recipe holds, planning answers with a plan or with mistakes that have a place and a remedy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning_kit import GOOD, fill

from optkit.errors import OptkitError, Problem, RecipeError, UnavailableError, UserError
from optkit.planning import make_plan
from optkit.recipe import Recipe, recipe_from, recipe_from_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("plan"))


WORDS = [
    *("onnx", "openvino", "source", "slim", "int8", "judge", "fit", "batch", "torch", "onnx.quantize", "cosine>=1"),
    *("openvino.quantize", "net.py:build", "package:numpy/x", "~a/b", "a/../..", "random", "{}", "\0", "x" * 300),
]
KEYS = ["id", "to", "use", "npz", "random", "min", "max", "shape", "1"]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**20),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.binary(max_size=3),
    st.sampled_from(WORDS),
    st.lists(st.sampled_from(["a", 1, None, "batch"]), max_size=3),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from([1, "a", None, "onnx", ["batch", 3]]), max_size=3),
)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths_in(item, (*path, key))


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """The good recipe with one to four values replaced, removed or added."""
    data: Any = yaml.safe_load(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(paths_in(data))))
        if not path:
            continue
        holder = data
        for key in path[:-1]:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "remove", "insert", "rename"])):
            case "replace":
                holder[path[-1]] = copy.deepcopy(draw(ODD))
            case "remove":
                del holder[path[-1]]
            case "insert" if isinstance(holder, list):
                holder.insert(path[-1], copy.deepcopy(draw(ODD)))
            case "insert":
                holder[draw(st.text(max_size=5))] = copy.deepcopy(draw(ODD))
            case "rename" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["with", "from", "to", "x", "id", "", "data"]))] = holder.pop(path[-1])
            case _:
                holder.append(copy.deepcopy(holder[path[-1]]))
    return data


def mistakes(read: Callable[[], Recipe]) -> list[Problem] | None:
    """What is wrong with a recipe; None for one that can be planned. Anything but optkit's own errors gets out."""
    try:
        return None if make_plan(read()).steps else []
    except RecipeError as error:
        return list(error.problems)
    except (UserError, UnavailableError) as error:
        return [Problem(error.what, error.where, error.hint)]
    except OptkitError as error:
        raise AssertionError("planning raises no error of a later stage") from error


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(spoilt())
def test_no_recipe_gives_a_traceback(folder: Path, data: Any) -> None:
    """The same from data as from text, but for values that YAML has a word of its own for."""
    text = yaml.safe_dump(data)
    from_data = mistakes(lambda: recipe_from(data, folder))
    from_text = mistakes(lambda: recipe_from_text(text, folder))
    assert all(p.what and p.hint for p in [*(from_data or ()), *(from_text or ())])
    assert (from_data is None) == (from_text is None) or "!!" in text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_no_text_gives_a_traceback(folder: Path, data: st.DataObject) -> None:
    text = GOOD
    signs = st.sampled_from(["{", "[", "&a ", "*a", "- ", ": ", "\t", "!!int ", "|"])
    for _ in range(data.draw(st.integers(1, 6))):
        at, cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(st.one_of(st.text(max_size=6), signs)) + text[at + cut :]
    found = mistakes(lambda: recipe_from_text(text, folder))
    assert found is None or found
    assert all(p.hint and p.where is not None and p.where.line for p in found or ()), found
