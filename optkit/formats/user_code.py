"""Importing the user's code, from a file with what lies beside it, or by a module's name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError, SourceError, did_you_mean
from optkit.formats.torch.files import existing, place, user_frame


@contextmanager
def user_callable(text: str, subject: str) -> Iterator[tuple[Callable[..., Any], Path | None]]:
    """What FILE.py:NAME or MODULE:NAME names, and the folder its file lies in, from where it may import meanwhile.

    subject: the recipe's key that names it, for messages. Raises SourceError.
    """
    where, _, attribute = text.rpartition(":")
    is_file = where.endswith(".py")
    if is_file:
        existing(where, subject)
    folder = Path(where).resolve().parent if is_file else None
    with importable(folder):
        code = imported(where, folder, subject)
        found = getattr(code, attribute, None)
        if not callable(found):
            callables = [
                n for n, v in vars(code).items() if callable(v) and getattr(v, "__module__", "") == code.__name__
            ]
            raise SourceError(
                f"{where} has no callable {attribute!r}",
                subject=subject,
                hint=did_you_mean(attribute, callables) or "define it there",
            )
        yield found, folder


@contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """What lies beside a factory can be imported meanwhile, freshly; sys.path is put back afterwards.

    A loaded module that has the name of a sibling is set aside and comes back, so that two recipes whose helpers share
    a name do not get each other's. The standard library and installed packages are never set aside.
    """
    if folder is None:
        yield
        return
    siblings = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}

    def set_aside(name: str) -> bool:
        file = getattr(sys.modules[name], "__file__", None) or ""
        return (
            name.split(".")[0] in siblings - set(sys.stdlib_module_names)
            and name != "__main__"
            and not {"site-packages", "dist-packages"} & set(Path(file).parts)
        )

    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if set_aside(name)}
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        sys.modules.update(aside)


def imported(where: str, folder: Path | None, subject: str) -> Any:
    """A module by its file (then `folder` is the one that lies in) or its dotted name. Raises SourceError."""
    try:
        if folder is None:
            return importlib.import_module(where)
        path = Path(where).resolve()
        name = f"optkit_source_{sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None  # a .py file always has one
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except ModuleNotFoundError as error:
        if folder is None and error.name and where.startswith(error.name):
            raise SourceError(
                f"there is no Python module {where!r}",
                subject=subject,
                hint="give the file, path/to/file.py:name, or put its folder on PYTHONPATH",
            ) from error
        raise raised(f"importing {where}", error, folder, f"install {error.name}", subject) from error
    except OptkitError:
        raise
    except (Exception, SystemExit) as error:
        raise raised(f"importing {where}", error, folder, "import it by hand in Python", subject) from error


def raised(what: str, error: BaseException, folder: Path | None, hint: str, subject: str) -> SourceError:
    """The error for the user's code having failed, with the line of theirs that it came from."""
    where = place(user_frame(error, folder))
    return SourceError(
        f"{what} raised {type(error).__name__}: {error}" + (f", at {where}" if where else ""),
        subject=subject,
        hint=hint,
        details=f"{where}\n{type(error).__name__}: {error}".strip(),
    )
