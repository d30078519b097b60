"""What each module of a torch model gives, read and replaced by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact
from optkit.formats.torch.model import TorchModel, load
from optkit.plugin import Point, checked_feeds, need

if TYPE_CHECKING:
    from optkit.plugin import Tensors


class TorchInside:
    """An open model; see `optkit.plugin.Inside`. Its points are modules that are called once, "module PATH".

    Which are, and in which order, is known from the first feed on: until then all are listed, as they are declared.
    """

    replaces = True

    def __init__(self, model: TorchModel) -> None:
        self._model = model
        root = model.source.module
        self._modules = {path: part for path, part in root.named_modules() if path and callable(part)}
        self._ordered: list[str] | None = None

    @property
    def points(self) -> list[Point]:
        """The modules, in the order of their first call once there was one."""
        paths = list(self._modules) if self._ordered is None else self._ordered
        return [self._point(path) for path in paths]

    def _point(self, path: str) -> Point:
        part = self._modules[path]
        weighs = any(True for _ in part.parameters(recurse=False))
        return Point(f"module {path}", getattr(part, "original_name", type(part).__name__), path, path, weighs=weighs)

    def values(self, names: Sequence[str], tensors: Tensors, given: Tensors | None = None) -> Tensors:
        """The values of what modules give; see `optkit.plugin.Inside`."""
        torch = need("torch")
        wanted, put = set(names), given or {}
        kept: dict[str, Any] = {}
        calls: dict[str, int] = {}

        def hook(path: str) -> Any:
            def after(module: Any, inputs: Any, result: Any) -> Any:
                calls[path] = calls.get(path, 0) + 1
                name, first = f"module {path}", _tensor(result)
                if first is None or not first.is_floating_point():
                    calls[path] += 1  # not one to compare
                    return None
                if name in wanted:
                    kept[name] = as_array(first)
                if name not in put:
                    return None
                other = torch.from_numpy(put[name].copy()).to(first.dtype).reshape(first.shape)
                return other if result is first else type(result)([other, *result[1:]])

            return after

        feeds = fed(self._model, tensors, put)
        with ExitStack() as stack:
            for path, part in self._modules.items():
                if self._ordered is None or f"module {path}" in wanted or f"module {path}" in put:
                    stack.callback(part.register_forward_hook(hook(path)).remove)
            with torch.inference_mode():
                outputs = self._model.consume(feeds)
        if self._ordered is None:
            self._ordered = [path for path, count in calls.items() if count == 1]
        found = {**{n: tensors[n] for n in names if n in tensors}, **kept}
        return {**found, **{n: as_array(t) for n, t in outputs.items() if n in wanted}}


def fed(model: TorchModel, tensors: Tensors, put: Tensors) -> dict[str, Any]:
    """A feed as torch tensors, inputs that are in `put` taken from there."""
    torch = need("torch")
    whole = checked_feeds({**tensors, **{n: v for n, v in put.items() if n in tensors}}, model.inputs)
    feeds = {}
    for spec, array in zip(model.inputs, whole.values(), strict=True):
        tensor = torch.from_numpy(array.copy())
        feeds[spec.name] = tensor.bfloat16() if spec.dtype == "bfloat16" else tensor
    return feeds


def _tensor(result: Any) -> Any:
    """The tensor in what a module gives: itself, or the first of a tuple; None where there is none."""
    torch = need("torch")
    if isinstance(result, torch.Tensor):
        return result
    if type(result) in (tuple, list) and result and isinstance(result[0], torch.Tensor):
        return result[0]
    return None


def as_array(tensor: Any) -> Any:
    """A tensor as numpy's, bfloat16 as float32."""
    torch = need("torch")
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return tensor.detach().contiguous().cpu().clone().numpy()


@contextmanager
def inside(artifact: Artifact, threads: int = 1) -> Iterator[TorchInside]:
    """The inner tensors of a torch model, on the CPU."""
    with threads_set(threads):
        yield TorchInside(load(artifact.path))


@contextmanager
def threads_set(threads: int) -> Iterator[None]:
    """torch's number of threads, for a while."""
    torch = need("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
