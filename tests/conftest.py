"""Fixtures every test may use."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOY_PLUGIN = Path(__file__).parent / "toy_plugin"

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do its children


@pytest.fixture(scope="session")
def toy_plugin_folder() -> Path:
    return TOY_PLUGIN


@pytest.fixture
def toy_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of two plug-ins, found here and in child processes: `optkit_toy` and `crashy`."""
    from optkit import registry

    def forget() -> None:
        importlib.invalidate_caches()
        registry.passes.cache_clear()
        registry.runners.cache_clear()

    monkeypatch.syspath_prepend(TOY_PLUGIN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TOY_PLUGIN), os.environ.get("PYTHONPATH")])))
    forget()
    yield TOY_PLUGIN
    forget()


@pytest.fixture
def edgetpu_stand_in(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called edgetpu_compiler on PATH that prints what the real one prints; see its own docstring."""
    folder = tmp_path_factory.mktemp("bin")
    script = Path(__file__).parent / "edgetpu_stand_in" / "edgetpu_compiler.py"
    program = folder / "edgetpu_compiler"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return program
