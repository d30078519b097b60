"""A callable of the user's, whose errors are told with the line they came from."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from optkit.errors import OptkitError, did_you_mean
from optkit.spec.dataspec import is_file, split_callable


@dataclass
class UserCode:
    """The user's module while it runs.

    call: as the recipe names it. files: its source files, the callable's own first. fault: makes an error of what is
        wrong, a hint and details. returns: what the callable should return. modules: what it imported from beside
        itself; kept apart from modules of the same names that others have loaded.
    """

    call: str
    files: list[Path]
    fault: Callable[..., OptkitError]
    returns: str = "an iterable of samples"
    modules: dict[str, ModuleType] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """The callable. Raises what `fault` makes when the module fails or has no such name."""
        place, attribute = split_callable(self.call)
        with self.running("loading it"):
            module = _execute(self.files[0]) if is_file(place) else importlib.import_module(place)
        found: Any = module
        for part in attribute.split("."):
            if not hasattr(found, part):
                names = [n for n in vars(found) if callable(getattr(found, n)) and not n.startswith("_")]
                raise self.fault(f"{self.files[0].name} has no {part!r}", did_you_mean(part, names))
            found = getattr(found, part)
        if not callable(found):
            raise self.fault(
                f"{self.call} is no callable but a {type(found).__name__}",
                f"name a function that returns {self.returns}",
            )
        return found  # type: ignore[no-any-return]

    @contextmanager
    def running(self, doing: str) -> Iterator[None]:
        """Runs the user's code: its imports find what lies beside it, its exceptions become errors made by `fault`."""
        with self._beside():
            try:
                yield
            except (Exception, SystemExit) as error:
                details = self._place(error)
                raise self.fault(
                    f"{self.call}: {doing} raised {type(error).__name__}: {error}, at {details.partition(chr(10))[0]}",
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
        if not is_file(split_callable(self.call)[0]):
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
