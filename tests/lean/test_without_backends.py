"""optkit on its base install alone: what needs no backend works, and the rest says what to install."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optkit.artifact import digest_of

ROOT = Path(__file__).parents[2]
BACKENDS = ("torch", "onnx", "onnxruntime", "onnxsim", "openvino", "nncf", "transformers", "safetensors", "PIL")


def base_files() -> dict[str, Path]:
    """The top-level files and folders that `pip install optkit` alone brings, by name, with those they need in turn."""
    found: dict[str, Path] = {}
    names, seen = ["click", "pydantic", "numpy", "PyYAML", "rich"], set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        wheel = importlib.metadata.distribution(name)
        for file in wheel.files or ():
            if file.parts[0] not in ("..", "__pycache__"):
                found[file.parts[0]] = Path(str(wheel.locate_file(file.parts[0])))
        for line in wheel.requires or ():
            needed = re.match(r"[A-Za-z0-9._-]+", line)
            if needed and "extra ==" not in line and "sys_platform" not in line and "python_version" not in line:
                names.append(needed[0])
    return found


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with optkit's base install and nothing else."""
    folder = tmp_path_factory.mktemp("lean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for name, path in base_files().items():
        (packages / name).symlink_to(path)
    (packages / "optkit.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    return folder / "bin/python"


def run(lean: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([str(lean), *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip


def optkit(lean: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run(lean, "-m", "optkit", *arguments, cwd=cwd)


def test_the_environment_is_lean(lean: Path) -> None:
    code = f"import importlib.util as u; print([n for n in {BACKENDS!r} if u.find_spec(n)])"
    assert run(lean, "-c", code).stdout == "[]\n"


def test_optkit_is_imported_with_its_whole_interface(lean: Path) -> None:
    code = "import optkit, sys; [getattr(optkit, n) for n in optkit.__all__]; print('numpy' in sys.modules)"
    done = run(lean, "-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--help", "Exit codes:"),
        ("--version", "optkit "),
        ("convert --help", "RECIPE|MODEL"),
        ("plan recipes/digits.yaml", "digits: 14 steps, 14 to run, 12 to deliver"),
        ("plan recipes/resnet50.yaml", "resnet50: 6 steps"),
        ("schema", '"title": "optkit recipe"'),
        ("passes", "openvino.compress_weights"),
        ("passes onnx.quantize", "per_channel"),
        ("completion bash", "_optkit_completion"),
    ],
)
def test_what_needs_no_backend_works(line: str, expected: str, lean: Path, tmp_path: Path) -> None:
    cache = ["--cache", str(tmp_path / "none")] if line.startswith("plan ") else []
    done = optkit(lean, *line.split(), *cache)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert done.stderr == ""


def test_doctor_says_what_each_extra_brings(lean: Path) -> None:
    done = optkit(lean, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    status = {p["name"]: (p["status"], p["install"]) for p in json.loads(done.stdout)["packages"]}
    assert {status[name][0] for name in ("click", "pydantic", "numpy", "pyyaml", "rich")} == {"ok"}
    assert status["openvino"] == ("not installed", 'pip install "optkit[openvino]"')
    assert status["torch"] == ("not installed", 'pip install "optkit[torch]"')
    needed = optkit(lean, "doctor", "--require", "openvino")
    assert needed.returncode == 4
    assert 'problem: openvino is not installed: pip install "optkit[openvino]"' in needed.stderr


def test_convert_says_in_one_line_what_to_install(lean: Path, tmp_path: Path) -> None:
    done = optkit(lean, "convert", "recipes/digits.yaml", "--out", str(tmp_path / "out"),
                  "--cache", str(tmp_path / "cache"))  # fmt: skip
    assert done.returncode == 4
    what, remedy, why = done.stderr.splitlines()
    assert what.startswith("error: not installed: torch (for the source model), ")
    assert "openvino (for step ov)" in what
    assert remedy == '  try: pip install "optkit[onnx,openvino,tensorflow,tensorrt-rtx,tflite,torch]"'
    code = why.removeprefix("  why: optkit explain ")
    assert "not installed" in optkit(lean, "explain", code).stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("convert net.onnx --to openvino", "onnx,openvino"),
        ("convert net.py:build --to onnx --input x:float32[2]", "onnx,torch"),
        ("inspect net.onnx", "onnx"),
        ("init net.onnx", "onnx"),
        ("init net.xml", "openvino"),
        ("init net.py:build", "torch"),
        ("check net.onnx net.onnx", "onnx"),
    ],
)
def test_what_needs_a_backend_says_which_extra_brings_it(line: str, extra: str, lean: Path, tmp_path: Path) -> None:
    for name in ("net.onnx", "net.xml", "net.bin", "net.py"):
        (tmp_path / name).write_text("def build(): ...\n", encoding="utf-8")
    done = optkit(lean, *line.split(), cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("error: ")
    assert f'  try: pip install "optkit[{extra}]"\n' in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.bin", "net.onnx", "net.py", "net.xml"]


def test_a_delivery_that_cannot_be_run_here(lean: Path, tmp_path: Path) -> None:
    tensor = {"name": "x", "dtype": "float32", "shape": ["batch", 2]}
    record = {"schema": 1, "step": "ov", "format": "openvino", "main": "model.xml", "digest": "ab", "dims": {},
              "signature": {"inputs": [tensor], "outputs": [tensor]}, "files": {}, "vectors": "test-vectors.npz",
              "status": "passed", "check": {"precision": "float32", "cases": []}}  # fmt: skip
    (tmp_path / "optkit.json").write_text(json.dumps({**record, "sha256": digest_of(record)}), encoding="utf-8")
    np.savez(tmp_path / "test-vectors.npz", **{"0/input/x": np.zeros((1, 2), np.float32)})
    done = optkit(lean, "verify", str(tmp_path))
    assert done.returncode == 4, done.stderr
    assert 'try: pip install "optkit[openvino]"' in done.stderr
