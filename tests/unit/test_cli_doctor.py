from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import optkit.envs.doctor as module
from optkit.cli import cli
from optkit.cli.doctor import draw
from optkit.cli.machine import machine
from optkit.cli.requirements import Wanted, meets, requirements, wanted
from optkit.envs.doctor import Found, examine, look_at, unmet
from optkit.errors import UserError


def install(folder: Path, name: str, version: str, code: str) -> None:
    """Put a package in a folder, as pip would, its import running `code`."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / f"{name.replace('-', '_')}.py").write_text(code)


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a child process finds packages in."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("version", "code", "status", "error"),
    [
        ("2.0", "", "ok", ""),
        ("2.0+cpu", "print('noise')", "ok", ""),
        ("1.9", "", "other version", ""),
        ("2.0", "import nothing_of_this_name", "broken", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("2.0", "import os; os.kill(os.getpid(), 11)", "broken", "its import died of SIGSEGV"),
        ("2.0", "import time; time.sleep(60)", "broken", "import some_tool did not end within 1 s"),
        ("2.0", "import sys; sys.exit(3)", "broken", "its import ended with exit code 3"),
    ],
)
def test_a_package_is_imported_in_a_child(packages: Path, version: str, code: str, status: str, error: str) -> None:
    install(packages, "some-tool", version, code)
    found = look_at(Wanted("some-tool", "==2.0", ("tool",)), timeout=1 if "sleep" in code else 60)
    assert (found.status, found.error) == (status, error)
    assert found.version == version
    remedy = {"ok": "", "broken": "pip install --force-reinstall some-tool==2.0"}.get(
        status, 'pip install "optkit[tool]"'
    )
    assert found.install == remedy


def test_a_package_that_is_not_there(packages: Path) -> None:
    found = look_at(Wanted("some-tool", "==2.0", ("tool",)))
    assert found == Found(
        "some-tool", ("tool",), False, "==2.0", None, "not installed", install='pip install "optkit[tool]"'
    )


def test_a_file_in_the_working_directory_is_not_the_package(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (packages / "here").mkdir()
    (packages / "here" / "some_tool.py").write_text("raise RuntimeError")
    install(packages, "some-tool", "2.0", "")
    monkeypatch.chdir(packages / "here")
    assert look_at(Wanted("some-tool", "==2.0")).status == "ok"


def test_requirements_are_read_as_metadata_writes_them() -> None:
    lines = ["click>=8.1", "numpy (>=2.0)", "torch==2.13.0; extra == 'torch'", 'optkit[torch] ; extra == "images"',
             'onnx==1.23.2 ; extra == "torch"', 'onnx==1.23.2 ; extra == "onnx"', 'pytest==9; extra == "dev"',
             'Some_Thing[x]==1; extra == "all"']  # fmt: skip
    found = [w for w in wanted(lines) if w.base or w.extras]
    assert found == [
        Wanted("click", ">=8.1", (), True),
        Wanted("numpy", ">=2.0", (), True),
        Wanted("torch", "==2.13.0", ("torch",)),
        Wanted("onnx", "==1.23.2", ("torch", "onnx")),
    ]
    assert Wanted("pillow", "").module == "PIL"
    assert Wanted("tensorrt-rtx", "").module == "tensorrt_rtx"


def test_optkits_own_requirements_are_found() -> None:
    lines, python = requirements()
    names = {w.name: w for w in wanted(lines)}
    assert names["click"].base
    assert names["torch"].spec == "==2.13.0"
    assert "3.11" in python


@pytest.mark.parametrize(
    ("version", "spec", "held"),
    [
        ("1.23.2", "==1.23.2", True),
        ("2.13.0+cpu", "==2.13.0", True),
        ("1.0", "==1.0.0", True),
        ("1.23.10", ">=1.23.9", True),
        ("3.14.0", ">=3.11,<3.14", False),
        ("3.11.7", ">=3.11,<3.14", True),
        ("1.2", "", True),
        ("1.2", "!=1.2", False),
        ("1.4.9", "~=1.4", True),
        ("2.0", "~=1.4", False),
    ],
)
def test_versions(version: str, spec: str, held: bool) -> None:
    assert meets(version, spec) is held


def test_the_machine() -> None:
    found = machine()
    assert found["cores"] >= 1
    assert found["memory_bytes"] is None or found["memory_bytes"] > 1e8


REPORT = {
    "optkit": "0.1.0", "python": {"version": "3.11.7", "executable": "/usr/bin/python", "expected": ">=3.11"},
    "machine": {"platform": "Linux", "processor": "CPU", "cores": 2, "memory_bytes": 8_000_000_000},
    "cache": {"path": "/home/me/.cache/optkit", "free_bytes": 1_000_000_000, "remote": None},
    "environments": [
        {"name": "other", "summary": "", "path": "/env/other", "wanted_by": ["onnx.to_x"], "status": "is not there",
         "create": "optkit env create other"},
    ],
    "packages": [
        {"name": "click", "extras": [], "base": True, "expected": ">=8.1", "version": "8.2", "status": "ok",
         "error": "", "install": "", "devices": None},
        {"name": "openvino", "extras": ["openvino"], "base": False, "expected": "==2026.4.1", "version": "2026.4.1",
         "status": "broken", "error": "ImportError: lib\x1b[2J", "install": "pip install --force-reinstall openvino",
         "devices": None},
        {"name": "nncf", "extras": ["openvino"], "base": False, "expected": "==3.4.0", "version": None,
         "status": "not installed", "error": "", "install": 'pip install "optkit[openvino]"', "devices": None},
        {"name": "onnx", "extras": ["onnx"], "base": False, "expected": "==1.23.2", "version": "1.22", "error": "",
         "status": "other version", "install": "", "devices": ["CPUExecutionProvider"]},
    ],
    "problems": [], "ok": True,
}  # fmt: skip


def test_the_table_names_what_is_wrong_and_what_puts_it_right() -> None:
    text = draw(REPORT)
    assert r"ImportError: lib\x1b[2J; pip install --force-reinstall openvino" in text
    assert 'not installed  pip install "optkit[openvino]"' in text
    assert "other version  works; optkit is tested with 1.23.2" in text
    assert "on onnx  CPUExecutionProvider" in text
    assert "cache    /home/me/.cache/optkit, 1.0 GB free" in text


def test_what_is_required_and_does_not_work_is_named() -> None:
    assert unmet(REPORT, ["onnx"]) == []
    assert unmet(REPORT, ["click", "nncf"]) == ['nncf is not installed: pip install "optkit[openvino]"']
    assert len(unmet(REPORT, ["openvino"])) == 1  # the package, not the extra of the same name
    with pytest.raises(UserError, match="knows no package 'opnvino'") as caught:
        unmet(REPORT, ["opnvino"])
    assert "'openvino'" in caught.value.hint


def test_the_command_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run over a few real packages: importing all of them takes its time."""
    lines = [line for line in requirements()[0] if line.startswith(("click", "openvino", "onnxruntime"))]
    monkeypatch.setattr(module, "requirements", lambda: (lines, ">=3.8"))
    result = CliRunner().invoke(cli, ["doctor", "--json", "--require", "tensorrt"])
    report = json.loads(result.stdout)
    found = {p["name"]: p for p in report["packages"]}
    assert found["click"]["status"] == "ok"
    assert found["openvino"]["devices"]
    assert "CPUExecutionProvider" in found["onnxruntime"]["devices"]
    assert result.exit_code == 4
    assert report["problems"] == ["tensorrt is not installed: pip install tensorrt"]
    assert result.stderr == "problem: tensorrt is not installed: pip install tensorrt\n"


def test_each_package_is_told_as_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "requirements", lambda: (["click>=99"], ">=3.8"))
    told: list[str] = []
    report = examine(told.append)
    assert "click" in told
    assert not report["ok"]
    assert report["problems"][0].startswith("click is other version, optkit needs >=99: pip install")
