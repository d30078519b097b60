"""What every pass must satisfy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pickle
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optkit.artifact import Artifact, digest_files
from optkit.envs import environments
from optkit.plugin import Context, Options, Pass, Runner


def assert_pass_contract(
    use: Pass,
    artifact: Artifact,
    options: Mapping[str, Any],
    context: Mapping[str, Any],
    tmp_path: Path,
    *,
    runner: Runner | None = None,
    deterministic: bool = True,
) -> Artifact:
    """The artifact a pass makes of another, after it has shown that it keeps the contract of `optkit.plugin.Pass`.

    artifact: a model of the pass's source format, with its signature. options: as a recipe writes them under `with:`.
    context: fields of `Context` beside the model's own (`dims`, `data`, `seed`). runner: what opens the output; default
    the registered one. deterministic: whether equal input gives equal bytes; say False only where a backend cannot.

    Checks that the pass is described well; that an unknown option is refused; that it writes its target file, and into
    `out_dir` alone; that its input, its options and the working directory stay as they were; that its notes are JSON
    data; that it kept what `keeps` promises, and finds itself in order (`confirm`). A pass that wants an environment of
    its own is tested there, in a child process, where `artifact` and `context` must be picklable. Raises
    AssertionError.
    """
    from optkit.models.signatures import promised
    from optkit.plans.named import named_files
    from optkit.tasks.making import reread
    from optkit.tasks.trials import Trials

    if use.environment is not None and environments.running() != use.environment:
        assert runner is None, f"{use.name} runs in {use.environment}, which has the registered runners alone"
        return _assert_there(
            environments.require(use.environment), use.name, (artifact, options, context, tmp_path, deterministic)
        )
    _assert_described(use)
    given = use.options.model_validate(dict(options))
    _assert_options(use, given)
    signature = artifact.signature
    assert signature is not None, "give an artifact with its signature"
    assert artifact.format == use.source, f"{use.name} takes {use.source}, not {artifact.format}"
    if use.wants_data(given):
        assert context.get("data") is not None, f"{use.name} needs data with these options: give it in `context`"
    made: list[Artifact] = []
    for turn in ("first", "second"):
        out, scratch, elsewhere = (tmp_path / f"{turn}-{name}" for name in ("out", "scratch", "cwd"))
        for folder in (out, scratch, elsewhere):
            folder.mkdir(parents=True)
        told: list[tuple[str, float | None]] = []
        whole = Context(
            **{
                "inputs": signature.inputs,
                "outputs": tuple(t.name for t in signature.outputs),
                "dims": {},
                "scratch": scratch,
                "progress": _Teller(told),
                "files": named_files(use, given, Path.cwd()),
                **context,
            }
        )
        if (tried := use.tries(given)) is not None and whole.trial is None:
            whole = replace(whole, trial=Trials(use, artifact, tried, whole))
        before = _tree(artifact.path.parent), given.model_copy(deep=True), dict(whole.dims)
        with chdir(elsewhere):
            notes = use.run(artifact, out, given, whole)
            assert Path.cwd() == elsewhere, f"{use.name} changed the working directory"
        assert list(elsewhere.iterdir()) == [], f"{use.name} wrote outside its folder: {list(elsewhere.iterdir())}"
        assert _tree(artifact.path.parent) == before[0], f"{use.name} changed what lies beside its input"
        assert (given, dict(whole.dims)) == before[1:], f"{use.name} changed its options or its dims"
        assert isinstance(notes, Mapping), f"{use.name} returned {notes!r}, not notes"
        json.dumps(notes, allow_nan=False)
        for text, fraction in told:
            assert isinstance(text, str), f"progress: {text!r} is no text"
            assert fraction is None or 0 <= fraction <= 1, f"progress: {fraction!r} is no part done"
        one = reread(use, artifact, out, whole, runner)
        assert not (broken := promised(use, artifact, one)), f"{use.name}: {'; '.join(broken)}"
        if use.confirm is not None:
            complaints = list(use.confirm(artifact, one, given, whole))
            assert not complaints, f"{use.name} does not confirm its own work: {'; '.join(complaints)}"
        made.append(one)
    assert set(made[0].files) == set(made[1].files)
    if deterministic:
        assert made[0].digest == made[1].digest, f"{use.name} gave other bytes the second time"
    return made[0]


_CHILD = """
import pathlib, pickle, sys
from optkit.registry import get_pass
from optkit.testing import assert_pass_contract
artifact, options, context, tmp_path, deterministic = pickle.loads(pathlib.Path(sys.argv[2]).read_bytes())
made = assert_pass_contract(get_pass(sys.argv[1]), artifact, options, context, tmp_path, deterministic=deterministic)
pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps(made))
"""


def _assert_there(there: environments.Environment, name: str, given: Any) -> Artifact:
    """`assert_pass_contract` in another environment."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "optkit").symlink_to(Path(__file__).parents[1], target_is_directory=True)
        file = Path(folder) / "given"
        file.write_bytes(pickle.dumps(given))
        done = subprocess.run([there.python, "-P", "-c", _CHILD, name, file], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": folder}, check=False)  # fmt: skip
        assert done.returncode == 0, f"in the environment {there.name}: {done.stderr}"
        made: Artifact = pickle.loads(file.read_bytes())
        return made


@dataclass(frozen=True)
class _Teller:
    """Keeps what a pass tells of its progress."""

    told: list[tuple[str, float | None]]

    def __call__(self, text: str, fraction: float | None) -> None:
        self.told.append((text, fraction))


def _assert_described(use: Pass) -> None:
    assert use.version >= 1
    assert use.summary, f"{use.name} has no summary"
    assert use.summary == use.summary.strip().rstrip("."), "a summary is a phrase, without a full stop"
    assert use.fidelity in ("exact", "rounding", "lossy")
    assert use.timeout_seconds > 0
    assert_tools(use.name, use.tools, use.modules)


def assert_tools(name: str, tools: Sequence[str], modules: Sequence[str]) -> None:
    """Tools are part of cache keys, so a misspelt one would go unnoticed for ever."""
    for tool in tools:
        importlib.metadata.version(tool)
    for module in modules:
        assert importlib.util.find_spec(module), f"{name}: there is no module {module!r} to load ahead"


def _assert_options(use: Pass, given: Options) -> None:
    for name, info in use.options.model_fields.items():
        assert info.description, f"{use.name}: the option {name!r} has no description"
    try:
        use.options.model_validate({**given.model_dump(by_alias=True), "no_such_option": 1})
    except ValidationError:
        pass
    else:
        raise AssertionError(f"{use.name} takes options it does not know")
    again = use.options.model_validate(json.loads(given.model_dump_json(by_alias=True)))
    assert again == given, f"{use.name}: its options do not survive being written down"


def _tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file under a folder: size, time of change, digest."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {n: (p.stat().st_size, p.stat().st_mtime_ns, digest_files(folder, [n])) for n, p in files.items()}
