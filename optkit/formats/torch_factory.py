"""Calling the user's function that builds a module, from a file or an importable module."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError, SourceError, did_you_mean
from optkit.formats.torch_files import existing, place, user_frame
from optkit.plugin import need


def build_module(descriptor: Mapping[str, Any]) -> tuple[Any, Path | None]:
    """The nn.Module a descriptor's factory returns, and the folder the factory's file lies in. Raises SourceError."""
    torch = need("torch")
    kwargs = dict(descriptor.get("kwargs") or {})
    with user_callable(str(descriptor["factory"])) as (build, folder):
        where, _, attribute = str(descriptor["factory"]).rpartition(":")
        _check_kwargs(build, kwargs, attribute)
        try:
            # Weights the factory draws must be the same at every load: the model is loaded once per step.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = build(**kwargs)
        except OptkitError:
            raise
        except (Exception, SystemExit) as error:
            raise raised(f"{attribute} in {where}", error, folder, "call it by hand in Python") from error
    if not isinstance(module, torch.nn.Module):
        raise SourceError(
            f"{attribute} in {where} returned {kind_of_value(module)}, not an nn.Module",
            subject="model.torch",
            hint="return the module itself",
        )
    return module, folder


@contextmanager
def user_callable(text: str) -> Iterator[tuple[Callable[..., Any], Path | None]]:
    """What FILE.py:NAME or MODULE:NAME names, and the folder its file lies in, from where it may import meanwhile.

    Raises SourceError.
    """
    where, _, attribute = text.rpartition(":")
    is_file = where.endswith(".py")
    if is_file:
        existing(where, "model.torch")
    folder = Path(where).resolve().parent if is_file else None
    with _importable(folder):
        code = _import(where, folder)
        found = getattr(code, attribute, None)
        if not callable(found):
            callables = [
                n for n, v in vars(code).items() if callable(v) and getattr(v, "__module__", "") == code.__name__
            ]
            raise SourceError(
                f"{where} has no callable {attribute!r}",
                subject="model.torch",
                hint=did_you_mean(attribute, callables) or "define it there",
            )
        yield found, folder


def kind_of_value(value: Any) -> str:
    """A value's type in words: "a dict", "a tuple of Linear, str", "None"."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {', '.join(type(v).__name__ for v in value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def raised(what: str, error: BaseException, folder: Path | None, hint: str) -> SourceError:
    """The error for what the user's code raised, with the line it came from."""
    where = place(user_frame(error, folder))
    return SourceError(
        f"{what} raised {type(error).__name__}: {error}" + (f", at {where}" if where else ""),
        subject="model.torch",
        hint=hint,
        details=f"{where}\n{type(error).__name__}: {error}".strip(),
    )


def _check_kwargs(build: Callable[..., Any], kwargs: Mapping[str, Any], name: str) -> None:
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in kwargs:
        if key not in parameters:
            raise SourceError(
                f"{name} takes no argument {key!r}",
                subject=f"model.kwargs.{key}",
                hint=did_you_mean(key, parameters) or "it takes none at all",
            )


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
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


def _import(where: str, folder: Path | None) -> Any:
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
                subject="model.torch",
                hint="give the file, path/to/file.py:name, or put its folder on PYTHONPATH",
            ) from error
        raise raised(f"importing {where}", error, folder, f"install {error.name}") from error
    except OptkitError:
        raise
    except (Exception, SystemExit) as error:
        raise raised(f"importing {where}", error, folder, "import it by hand in Python") from error
