"""Runs torch models: the reference every artifact is judged against, in float32 or, for its noise floor, float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from optkit.errors import UnavailableError
from optkit.formats.torch import inside as torch_inside
from optkit.formats.torch import traced as torch_traced
from optkit.formats.torch.device import check_device
from optkit.formats.torch.model import MAIN, TorchModel, describe, kind_of, load, read_descriptor
from optkit.formats.torch.quantised import written
from optkit.plugin import Artifact, Runner, Session, Settings, checked_feeds, need, settings_of

if TYPE_CHECKING:
    from optkit.plugin import Tensors


class TorchSettings(Settings):
    """How torch runs a module."""

    compile: bool | None = Field(
        None, description="torch.compile with inductor, instead of eager; needs a C++ compiler"
    )
    matmul_precision: Literal["highest", "high", "medium"] | None = Field(
        None,
        description="torch.set_float32_matmul_precision; high and medium may compute in bfloat16 or TensorFloat-32",
    )

    def arithmetic(self) -> str:
        """What the file says, or "runtime" where float32 products may be computed in less."""
        return "file" if self.matmul_precision in (None, "highest") else "runtime"


@dataclass(frozen=True)
class TorchSession:
    """An open model. provider: "torch cpu float32": the library, the device, and the type it computes in.

    bfloat16 has no numpy type: such an input is taken as float32 and rounded, such an output is given as float32.
    """

    model: TorchModel
    device: str
    provider: str

    def infer(self, tensors: Tensors) -> Tensors:
        """Outputs by name. Raises DataError for a wrong name, dtype or shape, SourceError where forward fails."""
        import numpy as np
        import torch

        feeds = {}
        for spec, array in zip(self.model.inputs, checked_feeds(tensors, self.model.inputs).values(), strict=True):
            tensor = torch.from_numpy(np.array(array, order="C")).to(self.device)  # a copy: forward may write into it
            feeds[spec.name] = tensor.bfloat16() if spec.dtype == "bfloat16" else tensor
        with torch.inference_mode():
            outputs = self.model.consume(feeds)
        return {name: _array(tensor) for name, tensor in outputs.items()}


def _array(tensor: Any) -> Any:
    import torch

    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return tensor.contiguous().cpu().clone().numpy()


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[Session]:
    """A session on "cpu" or "cuda[:n]"; torch's thread count is set meanwhile. precision: "float64", or None.

    On a GPU, TensorFloat-32 is off: the reference is float32. Raises UnavailableError for a device that is not there.
    """
    torch = need("torch")
    check_device(device)
    with ExitStack() as stack:
        before = torch.get_num_threads()
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(threads)
        model = load(artifact.path, precision, device=device)
        if device != "cpu":
            for switch in (torch.backends.cuda.matmul, torch.backends.cudnn):
                stack.callback(setattr, switch, "allow_tf32", switch.allow_tf32)
                switch.allow_tf32 = False
        chosen = settings_of(artifact, TorchSettings)
        if chosen.matmul_precision:
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision(chosen.matmul_precision)
        if chosen.compile and written(model.source.module):
            raise UnavailableError("torch.compile cannot see through the model's fake quantisers (torch.qat)",
                                   hint="leave out compile; for speed, convert it to ONNX or OpenVINO")  # fmt: skip
        if chosen.compile:
            model.module.compile()
        how = " compiled" if chosen.compile else ""
        yield TorchSession(model, device, f"torch {device} {precision or _computes_in(model)}{how}")


def _computes_in(model: TorchModel) -> str:
    """The floating-point type most of the parameters have, or else the first such input."""
    counts: Counter[str] = Counter()
    for parameter in model.module.parameters():
        if parameter.is_floating_point():
            counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    fed = [spec.dtype for spec in model.inputs if "float" in spec.dtype]
    return counts.most_common(1)[0][0] if counts else (fed[0] if fed else "float32")


# ------------------------------------------------------------------------------------------------ inspecting


def inspect(path: Path) -> dict[str, Any]:
    """What a torch.json, .pt2, .pt or .pth holds; of a file on its own no pickle is run.

    {"kind", "size_bytes", "parameters", "parameter_bytes", "dtypes": {dtype: elements}, "modules": {class: count}}, as
    far as the kind shows it; "pickled" lists what loading a pickle would call.
    """
    if path.suffix == ".json":
        model = load(path)
        descriptor: Mapping[str, Any] = read_descriptor(path)
        return {"kind": model.source.kind, "size_bytes": _size(descriptor), **_of_module(model.source.module)}
    from optkit.formats.torch import files as torch_files

    found = kind_of(path)
    about: dict[str, Any] = {"kind": found, "size_bytes": path.stat().st_size}
    if found == "pickle":
        return {**about, "pickled": torch_files.pickled_objects(path)}
    if found == "state_dict":
        return {**about, **_of_tensors(torch_files.read_weights(path))}
    from optkit.formats.torch.sources import open_source

    return {**about, **_of_module(open_source({"kind": found, "path": str(path)}).module)}


def _size(descriptor: Mapping[str, Any]) -> int:
    pruned = descriptor.get("pruned")
    paths = [pruned["weights"]] if pruned else [descriptor[key] for key in ("weights", "path") if descriptor.get(key)]
    named = [Path(path) for path in paths]
    files = [f for p in named for f in (p.rglob("*") if p.is_dir() else [p])]
    return sum(f.stat().st_size for f in files if f.is_file())


def _of_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    dtypes: Counter[str] = Counter()
    for tensor in tensors.values():
        if hasattr(tensor, "numel"):
            dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    held = sum(t.numel() * t.element_size() for t in tensors.values() if hasattr(t, "numel"))
    return {"parameters": sum(dtypes.values()), "parameter_bytes": held, "dtypes": dict(sorted(dtypes.items()))}


def _of_module(module: Any) -> dict[str, Any]:
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    named = {name: value for name, value in named.items() if f"{name}_quantised" not in named}  # held as integers
    classes = Counter(getattr(part, "original_name", type(part).__name__) for part in module.modules())
    return {**_of_tensors(named), "modules": dict(sorted(classes.items()))}


RUNNER = Runner(
    format="torch",
    version=2,
    main=MAIN,
    suffixes=(".pt2", ".pt", ".pth"),
    describe=describe,
    open=open_model,
    inspect=inspect,
    tools=("torch",),
    modules=("optkit.formats.warm.torch",),
    precisions=frozenset({"float64"}),
    settings=TorchSettings,
    inside=(torch_inside.inside, torch_traced.inside),
)
