"""Samples from a callable of the user's, whose errors are told with the line they came from."""

from __future__ import annotations

import importlib
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from optkit.artifact import Dim, TensorSpec
from optkit.data.source import Row, Source, fault, sample_hash
from optkit.dataspec import PythonData, is_file, python_files, split_callable
from optkit.errors import did_you_mean

_END = object()


def open_python(
    spec: PythonData, base: Path, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], name: str
) -> Source:
    """The dicts that the callable's iterable gives. Runs the user's module, and the callable once per pass."""
    code = _UserCode(spec, name, python_files(spec, base, name))
    function = code.load()
    first: list[str] = []  # the first sample's hash, once a pass has begun

    def call() -> Any:
        with code.running("calling it"):
            made = function(**spec.kwargs)
        if isinstance(made, str | bytes | Mapping) or not (hasattr(made, "__iter__") or hasattr(made, "__getitem__")):
            raise fault(
                name,
                f"{spec.python} returned a {type(made).__name__}, not an iterable of samples",
                "return a list or a generator of dicts, input name to array",
            )
        return made

    def rows() -> Iterator[Row]:
        made = call()
        with code.running("iterating over what it returned"):
            iterator = iter(made)
        for index in itertools.count():
            with code.running(f"making sample {index}"):
                item = next(iterator, _END)
            if item is _END:
                return
            if not isinstance(item, Mapping) or not all(isinstance(key, str) for key in item):
                raise fault(
                    name,
                    f"sample {index} is a {type(item).__name__}, not a dict from input names to arrays",
                    "yield {'input_name': array}",
                )
            sample, label = dict(item), None
            if spec.label is not None:
                label = sample.pop(spec.label, None)
                if label is None:
                    raise fault(name, f"sample {index} has no label {spec.label!r}", did_you_mean(spec.label, sample))
            if index == 0 and all(isinstance(array, np.ndarray) for array in sample.values()):
                digest = sample_hash(sample).hexdigest()
                if first and first[0] != digest:
                    raise fault(
                        name,
                        f"{spec.python} gives another first sample each time it is called",
                        "seed its random generator, and sort the files it reads",
                    )
                first[:] = [digest]
            yield sample, label

    def count() -> int:
        made = call()
        if hasattr(made, "__len__"):
            with code.running("taking its length"):
                return len(made)
        return sum(1 for _ in itertools.islice(rows(), spec.limit))

    return Source(
        rows,
        count,
        spec.label is not None,
        {"kind": "python", "callable": split_callable(spec.python)[1], "kwargs": spec.kwargs},
    )


@dataclass
class _UserCode:
    """The user's module while it runs.

    files: its source files, the callable's own first. modules: what it imported from beside itself; kept apart from
        modules of the same names that others have loaded.
    """

    spec: PythonData
    name: str
    files: list[Path]
    modules: dict[str, ModuleType] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """The callable. Raises DataError when the module fails or has no such name."""
        place, attribute = split_callable(self.spec.python)
        with self.running("loading it"):
            module = _execute(self.files[0]) if is_file(place) else importlib.import_module(place)
        found: Any = module
        for part in attribute.split("."):
            if not hasattr(found, part):
                names = [n for n in vars(found) if callable(getattr(found, n)) and not n.startswith("_")]
                raise fault(self.name, f"{self.files[0].name} has no {part!r}", did_you_mean(part, names))
            found = getattr(found, part)
        if not callable(found):
            raise fault(
                self.name,
                f"{self.spec.python} is no callable but a {type(found).__name__}",
                "name a function that returns an iterable of samples",
            )
        return found  # type: ignore[no-any-return]

    @contextmanager
    def running(self, doing: str) -> Iterator[None]:
        """Runs the user's code: its imports find what lies beside it, its exceptions become DataErrors."""
        with self._beside():
            try:
                yield
            except (Exception, SystemExit) as error:
                details = self._place(error)
                raise fault(
                    self.name,
                    f"{self.spec.python}: {doing} raised {type(error).__name__}: {error}, "
                    f"at {details.partition(chr(10))[0]}",
                    "run the callable on its own to look closer",
                    details,
                ) from error

    def _place(self, error: BaseException) -> str:
        """The user's innermost file, line and function, then the traceback from the user's first line on."""
        own = {str(file) for file in self.files}
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, SyntaxError) and error.filename in own:
            return f"{error.filename}:{error.lineno}\n{''.join(traceback.format_exception_only(error))}".rstrip()
        mine = [n for n, frame in enumerate(frames) if frame.filename in own]
        if not mine:
            return "".join([f"{self.files[0]}\n", *traceback.format_exception_only(error)]).rstrip()
        last = frames[mine[-1]]
        return "".join(
            [
                f"{last.filename}:{last.lineno} in {last.name}\n",
                *traceback.format_list(frames[mine[0] :]),
                *traceback.format_exception_only(error),
            ]
        ).rstrip()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """For a callable in a file: the file's folder first on the path, and its own copies of what lies there."""
        if not is_file(split_callable(self.spec.python)[0]):
            yield
            return
        home = self.files[0].parent
        beside = [file for file in self.files[1:] if file.is_relative_to(home)]
        names = {name for file in beside for name in _module_names(file, home)} - sys.stdlib_module_names
        others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
        sys.modules.update(self.modules)
        sys.path.insert(0, str(home))
        writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no __pycache__ beside the user's files
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.dont_write_bytecode = writes
            if str(home) in sys.path:
                sys.path.remove(str(home))
            self.modules = {name: sys.modules.pop(name) for name in names if name in sys.modules}
            sys.modules.update(others)


def _module_names(file: Path, home: Path) -> list[str]:
    """The dotted name under which a file beside the callable is imported, and its packages' names."""
    parts = file.relative_to(home).with_suffix("").parts
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1) if parts[n - 1] != "__init__"]


def _execute(file: Path) -> ModuleType:
    """A module run from its source file, afresh."""
    module = ModuleType(f"optkit_user_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses and pickle look a class's module up by name
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module
