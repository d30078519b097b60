"""From a torch descriptor to the module it describes, and to what that module's forward takes.

Kinds: a factory with weights, a program that torch.export saved, TorchScript, a pickled module, a Hugging Face folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError, SourceError, did_you_mean
from optkit.formats.torch_files import (
    check_exported,
    existing,
    fit_weights,
    kind_of,
    load_pickle,
    place,
    quiet,
    read_weights,
    untrusted,
    user_frame,
)
from optkit.plugin import need

KINDS = ("factory", "exported", "torchscript", "pickle", "huggingface")


@dataclass(frozen=True)
class Source:
    """A loaded module and how it is called.

    takes: names of forward's parameters, in order. required: those without a default.
    anything: forward takes names beyond `takes` (**kwargs). by_order: names say nothing, only the order does (*args).
    folder: where the user's code lies, for naming the line an error comes from.
    """

    kind: str
    module: Any
    takes: tuple[str, ...]
    required: frozenset[str]
    anything: bool = False
    by_order: bool = False
    positional: frozenset[str] = field(default_factory=frozenset)
    exported: Any = None
    folder: Path | None = None

    def call(self, names: Sequence[str], tensors: Sequence[Any]) -> Any:
        """forward's result for inputs given by name."""
        if self.by_order:
            return self.module(*tensors)
        if self.exported is not None:
            pytree = need("torch.utils._pytree", "torch")
            given = dict(zip(names, tensors, strict=True))
            args, kwargs = pytree.tree_unflatten([given[n] for n in self.takes], self.exported.call_spec.in_spec)
            return self.module(*args, **kwargs)
        given = dict(zip(names, tensors, strict=True))
        leading = [given.pop(n) for n in self.takes if n in self.positional and n in given]
        return self.module(*leading, **given)

    def check(self, names: Sequence[str]) -> None:
        """Raises SourceError unless these inputs are what forward takes."""
        if self.by_order:
            return
        for name in names:
            if name not in self.takes and not self.anything:
                raise SourceError(f"the model's forward has no input {name!r}; it takes {', '.join(self.takes) or 'nothing'}",
                                  subject=f"inputs.{name}", hint=did_you_mean(name, self.takes))
        lacking = [name for name in self.takes if name in self.required and name not in names]
        if lacking:
            raise SourceError(f"the model's forward needs {', '.join(map(repr, lacking))}, which no input feeds",
                              subject="inputs", hint=f"declare it under inputs: {lacking[0]}: {{shape: [...], dtype: ...}}")


def open_source(descriptor: Mapping[str, Any]) -> Source:
    """The module of a torch descriptor, on the CPU, in eval mode, without gradients. Raises SourceError."""
    kind = descriptor.get("kind")
    if kind not in KINDS:
        raise SourceError(f"unknown kind of torch model: {kind!r}", subject="model", hint=did_you_mean(str(kind), KINDS))
    with quiet():
        source: Source = {"factory": _factory, "exported": _exported, "torchscript": _torchscript, "pickle": _pickle,
                          "huggingface": _huggingface}[kind](descriptor)
    if kind != "exported":  # a GraphModule from torch.export refuses eval(): its mode was fixed at export
        source.module.eval()
    stuck = [name for name, p in source.module.named_parameters() if p.device.type == "meta"]
    if stuck:
        raise SourceError(f"{len(stuck)} parameters have no values (device meta), first {stuck[0]!r}",
                          subject="model.weights", hint="give weights for them")
    source.module.requires_grad_(False)
    return source


def of_module(kind: str, module: Any, *, forward: Callable[..., Any] | None = None, folder: Path | None = None) -> Source:
    """A Source for a live nn.Module. forward: whose parameters count, where the module is a wrapper."""
    torch = need("torch")
    if isinstance(module, torch.nn.Sequential):  # its forward's one parameter is torch's name, not the user's
        return Source(kind, module, (), frozenset(), by_order=True, folder=folder)
    kinds = inspect.Parameter
    parameters = [p for p in inspect.signature(forward or module.forward).parameters.values()]
    named = [p for p in parameters if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    return Source(
        kind, module, tuple(p.name for p in named), frozenset(p.name for p in named if p.default is kinds.empty),
        anything=any(p.kind is kinds.VAR_KEYWORD for p in parameters),
        by_order=not named and any(p.kind is kinds.VAR_POSITIONAL for p in parameters),
        positional=frozenset(p.name for p in named if p.kind is kinds.POSITIONAL_ONLY), folder=folder)


# ------------------------------------------------------------------------------------------------ factory


def _factory(descriptor: Mapping[str, Any]) -> Source:
    torch = need("torch")
    where, _, attribute = str(descriptor["factory"]).rpartition(":")
    is_file = where.endswith(".py")
    if is_file:
        existing(where, "model.torch")
    folder = Path(where).resolve().parent if is_file else None
    kwargs = dict(descriptor.get("kwargs") or {})
    with _importable(folder):
        code = _import(where, folder)
        build = getattr(code, attribute, None)
        if not callable(build):
            callables = [n for n, v in vars(code).items() if callable(v) and getattr(v, "__module__", "") == code.__name__]
            raise SourceError(f"{where} has no callable {attribute!r}", subject="model.torch",
                              hint=did_you_mean(attribute, callables) or "define it there")
        _check_kwargs(build, kwargs, attribute)
        try:
            module = build(**kwargs)
        except OptkitError:
            raise
        except (Exception, SystemExit) as error:
            raise _raised(f"{attribute} in {where}", error, folder, "call it by hand in Python") from error
    if not isinstance(module, torch.nn.Module):
        raise SourceError(f"{attribute} in {where} returned {_what(module)}, not an nn.Module", subject="model.torch",
                          hint="return the module itself")
    module.to("cpu") if all(p.device.type != "meta" for p in module.parameters()) else None
    if descriptor.get("weights"):
        state = read_weights(descriptor["weights"], trust_pickle=bool(descriptor.get("trust_pickle")))
        fit_weights(module, state, descriptor["weights"], strict=bool(descriptor.get("strict", True)))
    if isinstance(module, torch.jit.ScriptModule):
        return _scripted("factory", module)
    return of_module("factory", module, folder=folder or Path(inspect.getsourcefile(type(module)) or "/").parent)


def _what(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {', '.join(type(v).__name__ for v in value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _raised(what: str, error: BaseException, folder: Path | None, hint: str) -> SourceError:
    return SourceError(f"{what} raised {type(error).__name__}: {error}", subject="model.torch", hint=hint,
                       details=f"{place(user_frame(error, folder))}\n{type(error).__name__}: {error}".strip())


def _check_kwargs(build: Callable[..., Any], kwargs: Mapping[str, Any], name: str) -> None:
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in kwargs:
        if key not in parameters:
            raise SourceError(f"{name} takes no argument {key!r}", subject=f"model.kwargs.{key}",
                              hint=did_you_mean(key, parameters) or "it takes none at all")


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """What lies beside a factory can be imported meanwhile, freshly; sys.path is put back afterwards.

    A module of another place that has the name of a sibling is set aside and comes back, so that two recipes whose
    helpers share a name do not get each other's. The standard library and installed packages are never set aside.
    """
    if folder is None:
        yield
        return
    siblings = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}

    def set_aside(name: str) -> bool:
        file = getattr(sys.modules[name], "__file__", None) or ""
        return (name.split(".")[0] in siblings - set(sys.stdlib_module_names) and name != "__main__"
                and not {"site-packages", "dist-packages"} & set(Path(file).parts))

    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if set_aside(name)}
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        elsewhere = {n: m for n, m in aside.items() if Path(getattr(m, "__file__", None) or "/").parent != folder}
        sys.modules.update(elsewhere)


def _import(where: str, folder: Path | None) -> Any:
    try:
        if folder is None:
            return importlib.import_module(where)
        path = Path(where).resolve()
        name = f"optkit_source_{sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # a .py file always has a loader
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
            raise SourceError(f"there is no Python module {where!r}", subject="model.torch",
                              hint="give the file, path/to/file.py:name, or put its folder on PYTHONPATH") from error
        raise _raised(f"importing {where}", error, folder, f"install {error.name}") from error
    except OptkitError:
        raise
    except (Exception, SystemExit) as error:
        raise _raised(f"importing {where}", error, folder, "import it by hand in Python") from error


# ------------------------------------------------------------------------------------------------ files


def _path(descriptor: Mapping[str, Any], kind: str) -> Path:
    path = existing(descriptor["path"], "model")
    found = kind_of(path)
    if found != kind:
        says = {"state_dict": "weights alone, without a model", "pickle": "a pickle", "exported": "a torch.export program",
                "torchscript": "TorchScript"}[found]
        hint = ("give the factory that builds the model, and this file as its weights" if found == "state_dict"
                else f"say kind: {found}")
        raise SourceError(f"{path} is {says}, not of kind {kind}", subject="model", hint=hint)
    return path


def _exported(descriptor: Mapping[str, Any]) -> Source:
    torch = need("torch")
    path = _path(descriptor, "exported")
    check_exported(path, bool(descriptor.get("trust_pickle")))
    try:
        program = torch.export.load(path)
    except Exception as error:  # versions differ, custom operators are not registered
        raise SourceError(f"{path} cannot be loaded: {type(error).__name__}: {error}", subject="model",
                          hint="import what registers its custom operators, or export it again with this torch") from error
    takes = tuple(program.graph_signature.user_inputs)
    return Source("exported", program.module(), takes, frozenset(takes), exported=program)


def _torchscript(descriptor: Mapping[str, Any]) -> Source:
    torch = need("torch")
    path = _path(descriptor, "torchscript")
    try:
        return _scripted("torchscript", torch.jit.load(str(path), map_location="cpu"))
    except RuntimeError as error:
        raise SourceError(f"{path} cannot be loaded: {str(error).strip().splitlines()[0]}", subject="model",
                          hint="import what registers its custom operators, or save it again with this torch") from error


def _scripted(kind: str, module: Any) -> Source:
    arguments = module.forward.schema.arguments[1:]
    return Source(kind, module, tuple(a.name for a in arguments),
                  frozenset(a.name for a in arguments if not a.has_default_value()),
                  positional=frozenset(a.name for a in arguments))


def _pickle(descriptor: Mapping[str, Any]) -> Source:
    torch = need("torch")
    path = existing(descriptor["path"], "model")
    found = kind_of(path)
    if found in {"torchscript", "exported"}:
        _path(descriptor, "pickle")
    if not descriptor.get("trust_pickle"):
        raise untrusted(path, ["code of the module's class"], "model.trust_pickle")
    module = load_pickle(path, trust_pickle=True, subject="model")
    if not isinstance(module, torch.nn.Module):
        raise SourceError(f"{path} holds {_what(module)}, not an nn.Module", subject="model",
                          hint="give the factory that builds the model, and this file as its weights")
    return of_module("pickle", module, folder=Path(inspect.getsourcefile(type(module)) or "/").parent)


# ------------------------------------------------------------------------------------------------ Hugging Face


def _huggingface(descriptor: Mapping[str, Any]) -> Source:
    """The folder's model in float32, from local files alone; with pooling it gives one "embedding" per row."""
    need("torch")
    folder = Path(descriptor["path"])
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder} has no config.json, so it is no Hugging Face model folder", subject="model",
                          hint="give the folder that save_pretrained wrote")
    transformers = need("transformers")
    pooling, normalize = descriptor.get("pooling"), bool(descriptor.get("normalize"))
    if pooling not in {None, "mean", "cls"}:
        raise SourceError(f"unknown pooling {pooling!r}", subject="model.pooling", hint="mean, cls or none")
    if normalize and pooling is None:
        raise SourceError("normalize needs pooling", subject="model.normalize", hint="pooling: mean")
    name = descriptor.get("class")
    if name is None:
        listed = json.loads((folder / "config.json").read_text()).get("architectures") or ["AutoModel"]
        name = listed[0] if hasattr(transformers, listed[0]) else "AutoModel"
    cls = getattr(transformers, str(name), None)
    if cls is None or not hasattr(cls, "from_pretrained"):
        known = [n for n in dir(transformers) if n.startswith("AutoModel")]
        raise SourceError(f"transformers has no model class {name!r}", subject="model.class",
                          hint=did_you_mean(str(name), known))
    model, report = _from_pretrained(transformers, cls, folder)
    lacking = [k for k in report["missing_keys"] if not (pooling and "pooler." in k)] + list(report["mismatched_keys"])
    if lacking:
        raise SourceError(f"{folder} has no weights for {len(lacking)} parameters of {name}, first {lacking[0]}: they would "
                          "be random", subject="model.class", hint="name the class the folder was saved from")
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    if pooling is None:
        return of_module("huggingface", model)
    return of_module("huggingface", _pooled(model, pooling, normalize), forward=model.forward)


def _from_pretrained(transformers: Any, cls: Any, folder: Path) -> tuple[Any, Mapping[str, Any]]:
    torch, logging = need("torch"), transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded: tuple[Any, Mapping[str, Any]] = cls.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
        return loaded
    except Exception as error:  # a folder can be wrong in any way: config, shards, tokens
        raise SourceError(f"{cls.__name__} cannot load {folder}: {type(error).__name__}: {error}", subject="model",
                          hint="name the class the folder was saved from (model.class)") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _pooled(model: Any, pooling: str, normalize: bool) -> Any:
    """`model` with its hidden states (batch, sequence, hidden) pooled to "embedding" (batch, hidden).

    As sentence-transformers has it: the mean weighs by the attention mask and divides by at least 1e-9; normalising
    divides by the L2 norm.
    """
    torch = need("torch")

    class Pooled(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, **inputs: Any) -> dict[str, Any]:
            hidden = self.encoder(**inputs).last_hidden_state
            if pooling == "cls":
                embedding = hidden[:, 0]
            else:
                mask = inputs.get("attention_mask")
                weight = torch.ones_like(hidden[..., :1]) if mask is None else mask.unsqueeze(-1).to(hidden.dtype)
                embedding = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return {"embedding": torch.nn.functional.normalize(embedding, p=2, dim=1) if normalize else embedding}

    return Pooled()
