"""Plans: the steps and checks a recipe stands for, and the routes between formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning_kit import GOOD, TOY, fill, plan_of

from optkit.artifact import Artifact
from optkit.caching import keys
from optkit.errors import UnavailableError, UserError
from optkit.parity.bounds import Bound
from optkit.registry import NoRouteError, passes, route


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("plan"))


def test_steps_come_after_their_parents_and_otherwise_as_written(folder: Path) -> None:
    text = GOOD.replace("  - {id: onnx, to: onnx}\n", "").replace("deliver:", "  - {id: onnx, to: onnx}\ndeliver:")
    plan = plan_of(text, folder)
    assert [(s.id, s.use.name, s.parent) for s in plan.steps] == [
        ("onnx", "torch.to_onnx", "source"),
        ("slim", "onnx.simplify", "onnx"),
        ("int8", "onnx.quantize", "slim"),
        ("ov", "onnx.to_openvino", "slim"),
    ]
    assert plan.deliver == ("int8", "ov")
    assert plan.ancestors("int8") == ("onnx", "slim", "int8")
    assert [s.id for s in plan.children("slim")] == ["int8", "ov"]
    assert str(plan.step("slim").where).endswith(":16:5")


def test_without_deliver_every_leaf_is_delivered(folder: Path) -> None:
    assert plan_of(GOOD.replace("deliver: [int8, ov]\n", ""), folder).deliver == ("int8", "ov")


def test_a_lossy_steps_bounds_hold_for_the_faithful_steps_after_it(folder: Path) -> None:
    more = """\
  - {id: fp16, from: int8, use: onnx.fp16}
  - {id: ov16, from: fp16, to: openvino, check: ["cosine >= 0.9", "logits.top1_agreement >= 99%"]}
deliver:"""
    plan = plan_of(GOOD.replace("deliver:", more), folder)
    faithful, lossy, half, last = (plan.step(s).check for s in ("slim", "int8", "fp16", "ov16"))
    assert (faithful.bounds, faithful.lossy, faithful.precision) == ((), False, "float32")
    assert (lossy.bounds, lossy.stated_by, lossy.lossy) == ((Bound("cosine", ">=", 0.99),), ("int8",), True)
    assert (half.bounds, half.stated_by, half.lossy, half.precision) == (lossy.bounds, ("int8",), True, "float16")
    assert [str(b) for b in last.bounds] == ["cosine >= 0.9", "logits.top1_agreement >= 0.99"]
    assert last.stated_by == ("ov16", "ov16")
    assert last.precision == "float16"


def test_a_waived_check_keeps_its_reason_and_hands_on_the_bounds(folder: Path) -> None:
    text = GOOD.replace('check: ["cosine >= 0.99"]', 'waive: "the int8 file is only looked at"')
    check = plan_of(text, folder).step("int8").check
    assert (check.waived, check.bounds, check.lossy) == ("the int8 file is only looked at", (), True)


def test_steps_on_the_way_are_implied_and_shared(folder: Path, toy_plugin: Path) -> None:
    steps = "- {id: a, to: toypack, timeout: 9, on_target: true}\n- {id: b, to: toypack, on_target: true}\n"
    plan = plan_of(TOY + steps, folder)
    assert [(s.id, s.use.name, s.parent, s.implied, s.timeout_seconds, s.on_target) for s in plan.steps] == [
        ("a.toybin", "toy.to_toybin", "source", True, 9.0, True),
        ("a", "toybin.to_toypack", "a.toybin", False, 9.0, True),
        ("b", "toybin.to_toypack", "a.toybin", False, 1800.0, True),
    ]
    assert plan.deliver == ("a", "b")


def test_a_written_step_that_does_the_same_is_shared_too(folder: Path, toy_plugin: Path) -> None:
    plan = plan_of(TOY + "- {id: bin, to: toybin}\n- {id: pack, to: toypack}\n", folder)
    assert [(s.id, s.parent) for s in plan.steps] == [("bin", "source"), ("pack", "bin")]
    stated = '- {id: bin, to: toybin, check: ["cosine >= 0.9"]}\n- {id: pack, to: toypack}\n'
    assert [s.id for s in plan_of(TOY + stated, folder).steps] == ["bin", "pack.toybin", "pack"]


def test_an_implied_step_takes_no_id_that_is_taken(folder: Path, toy_plugin: Path) -> None:
    plan = plan_of(TOY + "- {id: a, to: toypack}\n- {id: a.toybin, use: toy.copy}\n", folder)
    assert [(s.id, s.use.name) for s in plan.steps] == [
        ("a.toybin-2", "toy.to_toybin"),
        ("a", "toybin.to_toypack"),
        ("a.toybin", "toy.copy"),
    ]


def test_only_cuts_a_plan(folder: Path) -> None:
    plan = plan_of(GOOD, folder).only(["ov", "ov"])
    assert [s.id for s in plan.steps] == ["onnx", "slim", "ov"]
    assert plan.deliver == plan.chosen == ("ov",)
    with pytest.raises(UserError, match="there is no step 'slmi'") as caught:
        plan.only(["slmi"])
    assert "did you mean 'slim'?" in caught.value.hint


def test_another_interpreter_is_found_from_the_recipe(folder: Path) -> None:
    (folder / "env").write_text("", encoding="utf-8")
    plan = plan_of(GOOD.replace("id: onnx,", "id: onnx, python: env,"), folder)
    assert plan.step("onnx").python == str(folder / "env")


def test_files_inside_installed_packages(folder: Path) -> None:
    text = GOOD.replace("torch: net.py:build", "torch: package:optkit/api.py:build")
    text = text.replace("npz: fit.npz", "npz: package:optkit/py.typed")
    assert plan_of(text, folder).deliver == ("int8", "ov")


# --- plug-ins and routes


def test_a_route_is_the_shortest(toy_plugin: Path) -> None:
    assert [p.name for p in route("toy", "toypack")] == ["toy.to_toybin", "toybin.to_toypack"]
    assert [p.name for p in route("torch", "openvino")] == ["torch.to_openvino"]
    with pytest.raises(NoRouteError) as caught:
        route("toypack", "toyend")
    for name in ("toypack.to_toyleft -> toyleft.to_toyend", "toypack.to_toyright -> toyright.to_toyend", "toypack"):
        assert name in caught.value.what
    with pytest.raises(NoRouteError, match="no conversion leads from toyend to toy") as caught:
        route("toyend", "toy")
    assert "nothing" in caught.value.hint


@pytest.mark.parametrize(
    ("module", "what"),
    [
        ("raise RuntimeError('half installed')", "it cannot be loaded: RuntimeError: half installed"),
        ("import nosuchmodule", "it cannot be loaded: ModuleNotFoundError"),
        ("import sys; sys.exit('go away')", "it cannot be loaded: SystemExit: go away"),
        ("PASS = 3", "it is a int, not a Pass"),
        ("OTHER = 3", "it cannot be loaded: AttributeError"),
        ("PASS = Pass('onnx.simplify', 1, 'a', 'b', '', print)", "there is another pass called 'onnx.simplify'"),
        ("PASS = Pass('a b', 1, 'a', 'b', '', print)", "'a b' cannot name a pass"),
        ("PASS = Pass('ab', 1, 'a', 'b', '', print, fidelity='good')", "fidelity 'good' is none of exact, rounding"),
        ("PASS = Pass('ab', 1, 'a', 'b', '', print, precision='int8')", "precision 'int8' is none of float64"),
        ("PASS = Pass('ab', 1, 'a', 'b', '', print, keeps=frozenset({'names', 'dim'}))", "keeps dim, which is none"),
        ("PASS = Pass('ab', 1, 'a', 'b', '', print, options=dict)", "its options are <class 'dict'>"),
    ],
)
def test_a_broken_plugin_is_named(
    module: str, what: str, tmp_path: Path, toy_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[optkit.passes]\nmine = broken_plugin:PASS\n", encoding="utf-8")
    (tmp_path / "broken_plugin.py").write_text(f"from optkit.plugin import Pass\n{module}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "broken_plugin", raising=False)
    passes.cache_clear()
    with pytest.raises(UnavailableError) as caught:
        passes()
    assert what in caught.value.what
    assert "broken_plugin:PASS (optkit.passes)" in caught.value.what
    assert caught.value.hint


def test_what_a_pass_asks_of_the_machine_is_in_its_key_and_in_no_other(folder: Path) -> None:
    plan = plan_of(GOOD, folder)
    step, parent = plan.step("slim"), Artifact("onnx", folder / "m.onnx", "digest")

    def key(machine: Callable[[Any], list[str]] | None) -> str:
        return keys.step_key(plan, replace(step, use=replace(step.use, machine=machine)), parent, None, parent)

    assert key(None) == keys.step_key(plan, step, parent, None, parent)
    assert len({key(None), key(lambda options: ["GPU A"]), key(lambda options: ["GPU B"])}) == 3


PRUNED = "{id: small, use: torch.prune, with: {remove_macs: 20%}, "


def test_a_conversion_after_a_pruning_is_held_to_its_parent_too(folder: Path) -> None:
    steps = f"""\
  - {PRUNED}check: ["cosine >= 0.5"]}}
  - {{id: onnx, from: small, to: onnx}}
"""
    plan = plan_of(GOOD.replace("  - {id: onnx, to: onnx}\n", steps), folder)
    small, onnx, slim, int8, ov = (plan.step(s).check for s in ("small", "onnx", "slim", "int8", "ov"))
    assert [c.as_parent for c in (small, onnx, slim, int8, ov)] == [False, True, True, False, True]
    assert [str(b) for b in onnx.bounds] == ["cosine >= 0.5"]
    after = plan_of(GOOD.replace("{id: ov, from: slim", "{id: ov, from: int8"), folder).step("ov").check
    assert not after.as_parent, "an int8 kernel may differ by a whole step from another"
    mine = steps.replace("to: onnx}", 'to: onnx, check: ["cosine >= 0.4"]}')
    plan = plan_of(GOOD.replace("  - {id: onnx, to: onnx}\n", mine), folder)
    assert not plan.step("onnx").check.as_parent, "what a step states itself is what it is judged by"


def test_after_a_waived_pruning_the_parent_alone_is_the_measure(folder: Path) -> None:
    steps = f"  - {PRUNED}waive: it is looked at by hand}}\n  - {{id: onnx, from: small, to: onnx}}\n"
    check = plan_of(GOOD.replace("  - {id: onnx, to: onnx}\n", steps), folder).step("onnx").check
    assert (check.bounds, check.lossy, check.as_parent, check.unbounded) == ((), True, True, False)
