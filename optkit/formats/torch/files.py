"""What torch files hold, found without running what is pickled in them, and how their weights get into a module."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
import sys
import traceback
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optkit.errors import SourceError
from optkit.plugin import need

WRAPPED = "optkit_inner"
"""The attribute under which optkit's own modules hold the user's: no part of any name that a user sees."""

SUFFIXES = (".pt2", ".pt", ".pth")
NESTED = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "model.", "_orig_mod.")
SHOWN = 10
SHOWN_SHORT = 4
PLAIN = re.compile(
    r"collections\.OrderedDict|torch\.\w*(Storage|Tensor|Size)|torch\._utils\._rebuild\w+|torch\.storage\.\w+|"
    r"torch\.serialization\._get_layout|_codecs\.encode|torch\.(float|bfloat|int|uint|bool)\d*|torch\.device"
)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of torch 2.13 that nobody can act on: about its own code, and about TorchScript as such.

    Nor with the one about attributes that forward assigns: what such a model returns is compared with the model.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r"The tensor attributes? .* assigned during export", UserWarning)
        yield


def user_frame(error: BaseException, folder: Path | None = None) -> traceback.FrameSummary | None:
    """The innermost frame of `error` in `folder`, or else outside backends and optkit: the user's own line."""
    backends = [sys.modules[name] for name in ("torch", "tensorflow", "keras") if name in sys.modules]
    ours = (*(path for backend in backends for path in backend.__path__), str(Path(__file__).parents[2]), "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    near = [f for f in frames if folder is not None and Path(f.filename).is_relative_to(folder)]
    return near[-1] if near else frames[-1] if frames else None


def place(frame: traceback.FrameSummary | None) -> str:
    """A frame as "model.py:12 in forward: `the line itself`", with the whole path."""
    return f"{frame.filename}:{frame.lineno} in {frame.name}: `{frame.line}`" if frame else ""


def existing(path: str | Path, subject: str) -> Path:
    """`path`, which must be a file. Raises SourceError."""
    path = Path(path)
    if path.is_file():
        return path
    near = sorted(p.name for p in path.parent.glob(f"*{path.suffix}"))[:SHOWN] if path.parent.is_dir() else []
    raise SourceError(
        f"{path} is not there" if not path.exists() else f"{path} is not a file",
        subject=subject,
        hint=f"the folder has {', '.join(near)}" if near else "paths are relative to the recipe",
    )


def kind_of(path: Path) -> str:
    """What the file is: "torchscript", "exported", "state_dict" (tensors alone) or "pickle" (objects too).

    Nothing in the file is run. Raises SourceError for a file that is none of these.
    """
    path = existing(path, "model")
    if path.suffix == ".safetensors":
        return "state_dict"
    if zipfile.is_zipfile(path):
        members = _members(path)
        if {"archive_format", "serialized_exported_program.json"} & members:
            if any(name.startswith("data/aotinductor/") for name in members):
                raise SourceError(
                    f"{path} is a compiled AOTInductor package, from which nothing can be converted",
                    subject="model",
                    hint="save the program itself: torch.export.save(program, path)",
                )
            return "exported"
        if "constants.pkl" in members:
            return "torchscript"
        if "data.pkl" in members:
            return "pickle" if pickled_objects(path) else "state_dict"
    elif _starts_as_pickle(path):
        return "pickle" if pickled_objects(path) else "state_dict"
    raise SourceError(
        f"{path} is not a torch file: neither torch.save, torch.jit.save nor torch.export.save wrote it",
        subject="model",
        hint="a file that was not copied whole looks like this too",
    )


def _starts_as_pickle(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(1) == b"\x80"


def _members(path: Path) -> set[str]:
    """Names of the files in a torch archive, without the folder they all lie in."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise SourceError(f"{path} is damaged: {error}", subject="model", hint="copy it again") from error
    return {name.split("/", 1)[1] if "/" in name else name for name in names}


def pickled_objects(source: Path | bytes) -> list[str]:
    """Classes and functions, past those of plain tensors, that loading the pickle would call; nothing is run."""
    torch = need("torch")
    try:
        handle = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(handle))
    except (ValueError, RuntimeError):
        pass  # the format before torch 1.6: a row of pickles
    found: set[str] = set()
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        for _ in range(5):
            try:
                for opcode, value, _place in pickletools.genops(stream):
                    if opcode.name in {"GLOBAL", "INST"}:
                        found.add(str(value).replace(" ", "."))
                    elif opcode.name == "STACK_GLOBAL":
                        found.add("an object named at run time")
            except ValueError:
                break
    return sorted(name for name in found if not PLAIN.fullmatch(name))


def untrusted(path: Path, found: Iterable[str], subject: str) -> SourceError:
    names = list(found)
    return SourceError(
        f"{path} is not tensors alone: loading it would call {', '.join(names[:SHOWN])}",
        subject=subject,
        hint="set `trust_pickle: true` if you trust whoever wrote the file, or save "
        "module.state_dict() with safetensors",
    )


def check_exported(path: Path, trust_pickle: bool) -> None:
    """Raises SourceError for a .pt2 in which torch.export.load would run pickled code, unless that is trusted."""
    if trust_pickle:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            found = list(_pickled_payloads(archive))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise SourceError(f"{path} is damaged: {error}", subject="model", hint="copy it again") from error
    if found:
        raise untrusted(path, found, "model.trust_pickle")


def _pickled_payloads(archive: zipfile.ZipFile) -> Iterator[str]:
    """What torch.export.load would call: example inputs are a pickle, weights and constants where they say so."""
    for name in archive.namelist():
        if name.endswith((".pt", ".pth")) and archive.getinfo(name).file_size:
            yield from pickled_objects(archive.read(name))
        elif name.endswith("_config.json"):
            folder = name.rsplit("/", 1)[0]
            for about in json.loads(archive.read(name)).get("config", {}).values():
                if about.get("use_pickle"):
                    yield from pickled_objects(archive.read(f"{folder}/{about['path_name']}"))


def load_pickle(path: Path, *, trust_pickle: bool, subject: str) -> Any:
    """What torch.load gives for `path` on the CPU; weights are mapped from the file where its format allows."""
    torch = need("torch")
    mapped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=mapped)
    except (AttributeError, ModuleNotFoundError) as error:
        raise SourceError(
            f"{path} holds an object whose code cannot be found: {error}",
            subject=subject,
            hint="put the code on PYTHONPATH, or give a factory and a state dict instead",
        ) from error
    except pickle.UnpicklingError as error:
        named = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if not trust_pickle and named:
            raise untrusted(path, dict.fromkeys([*named, *pickled_objects(path)]), subject) from error
        raise SourceError(
            f"{path} cannot be read: {str(error).splitlines()[0]}",
            subject=subject,
            hint="a file that was not copied whole looks like this",
        ) from error
    except Exception as error:  # a damaged file fails in any way, and a trusted pickle runs its own code
        raise SourceError(
            f"{path} cannot be read: {type(error).__name__}: {error}",
            subject=subject,
            hint="a file that was not copied whole looks like this",
        ) from error


# ------------------------------------------------------------------------------------------------ weights


def read_weights(path: str | Path, *, trust_pickle: bool = False) -> dict[str, Any]:
    """Name to tensor, from .safetensors or a state dict that torch.save wrote, also one nested under a usual key."""
    subject = "model.weights"
    path = existing(path, subject)
    if path.suffix == ".safetensors":
        try:
            return dict(need("safetensors.torch", "safetensors").load_file(str(path)))
        except Exception as error:  # SafetensorError is not importable without safetensors
            raise SourceError(
                f"{path} cannot be read: {error}",
                subject=subject,
                hint="a file that was not copied whole looks like this",
            ) from error
    kind = kind_of(path)
    if kind in {"torchscript", "exported"}:
        raise SourceError(
            f"{path} is a whole {kind} model, not weights",
            subject=subject,
            hint=f"give it as the model itself: model: {{{'pt2' if kind == 'exported' else kind}: {path.name}}}",
        )
    loaded = load_pickle(path, trust_pickle=trust_pickle, subject=subject)
    if isinstance(loaded, need("torch").nn.Module):
        raise SourceError(
            f"{path} is a whole pickled {type(loaded).__name__}, not weights",
            subject=subject,
            hint=f"give it as the model itself: model: {{pickle: {path.name}, trust_pickle: true}}",
        )
    return _unnest(loaded, path)


def _unnest(loaded: Any, path: Path) -> dict[str, Any]:
    torch = need("torch")

    def is_state(value: Any) -> bool:
        return isinstance(value, Mapping) and any(isinstance(item, torch.Tensor) for item in value.values())

    if is_state(loaded):
        return dict(loaded)
    nested = [key for key in NESTED if isinstance(loaded, Mapping) and is_state(loaded.get(key))]
    if len(nested) == 1:
        return dict(loaded[nested[0]])
    holds = (
        f"a dict with {', '.join(map(str, loaded))}" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
    )
    raise SourceError(
        f"{path} holds {holds}, and " + ("no state dict" if not nested else "more than one state dict"),
        subject="model.weights",
        hint="save module.state_dict() alone, best with safetensors",
    )


def fit_weights(module: Any, state: Mapping[str, Any], path: str | Path, *, strict: bool = True) -> None:
    """Load `state` into `module`, sharing the tensors where dtypes allow. Raises SourceError for what does not fit.

    strict=False lets keys be missing or left over, but not of another shape.
    """
    torch = need("torch")
    own = module.state_dict()
    # A batch norm's step counter plays no part in inference, and checkpoints from before torch 0.4.1 lack it. Of tied
    # weights, safetensors' save_model writes one.
    given = {_memory(own[k]) for k in own if k in state} - {None}
    missing = [
        k for k in own if k not in state and not k.endswith("num_batches_tracked") and _memory(own[k]) not in given
    ]
    unexpected = [k for k in state if k not in own]
    both = [(k, own[k], state[k]) for k in own if isinstance(state.get(k), torch.Tensor) and hasattr(own[k], "shape")]
    shapes = [
        f"{k}: {_size(there)} in the file, {_size(here)} in the model"
        for k, here, there in both
        if here.shape != there.shape
    ]
    bad = bool(shapes) or (strict and bool(missing or unexpected)) or not both
    if bad:
        groups = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        counts = ", ".join(f"{len(items)} {word}" for word, items in groups if items)
        listing = "\n".join(
            f"{word} ({len(items)}):\n"
            + "\n".join(f"  {item}" for item in items[:SHOWN])
            + (f"\n  and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
            for word, items in groups
            if items
        )
        named = "; ".join(
            f"{word}: {', '.join(items[:SHOWN_SHORT])}" + (" and others" if len(items) > SHOWN_SHORT else "")
            for word, items in groups
            if items
        )
        raise SourceError(
            f"the weights in {path} do not fit the model, {counts}\n{named}",
            subject="model.weights",
            details=listing,
            hint=_prefix_hint(list(own), list(state)),
        )
    alike = all(here.dtype == there.dtype for _, here, there in both)
    tied = len(list(module.named_parameters(remove_duplicate=False))) != len(list(module.named_parameters()))
    module.load_state_dict(dict(state), strict=False, assign=alike and not tied)


def _memory(tensor: Any) -> tuple[Any, ...] | None:
    """What tensors that are one in all but name have in common."""
    if not hasattr(tensor, "data_ptr") or not tensor.data_ptr():
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _size(tensor: Any) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"


def _prefix_hint(own: list[str], given: list[str]) -> str:
    fits = len(set(own) & set(given))
    for one, other, advice in ((given, own, "strip {!r} from the file's keys"), (own, given, "put {!r} before them")):
        for prefix in (*PREFIXES, *(a + b for a in PREFIXES for b in PREFIXES)):
            cut = {key.removeprefix(prefix) for key in one if key.startswith(prefix)}
            if len(cut & set(other)) > fits:
                return "the names fit but for a prefix: " + advice.format(prefix)
    return "build the model with the options it was trained with (kwargs), or set `strict: false` if parts may be left"
