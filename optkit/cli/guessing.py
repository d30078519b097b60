"""What the inputs of a torch model are, found by building it and trying, or in a Hugging Face folder's config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optkit.artifact import TensorSpec
from optkit.drafting.init import CHECK, Input, Looked
from optkit.errors import OptkitError, SourceError
from optkit.spec.dataspec import resolve_path

_SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 384, 512)  # what vision models usually take, the commonest first
_TRIED = "the model ran with it, but may be meant for another size"
_UNTRIED = CHECK + "no shape that was tried runs"


def of_factory(section: dict[str, Any]) -> Looked:
    """What building the model and trying a few shapes shows. Runs the user's code. Raises SourceError when it fails."""
    from optkit.formats.torch.sources import open_source

    looked = Looked(dict(section))
    where, _, name = str(section["torch"]).rpartition(":")
    file = Path(where)
    factory = f"{file.absolute()}:{name}" if file.suffix == ".py" else section["torch"]
    descriptor = {"kind": "factory", "factory": factory, "weights": section.get("weights")}
    source = None
    if beside := None if section.get("weights") or file.suffix != ".py" else weights_beside(file):
        try:
            source = open_source({**descriptor, "weights": str(beside.absolute())})
        except OptkitError:
            looked.notes["torch"] = f"{beside.name} lies beside it, but does not fit this model"
        else:
            looked.section["weights"] = str(beside)
            looked.notes["weights"] = "found beside the code, and it fits"
    source = source or open_source(descriptor)
    if given := example_inputs(file, source):
        looked.inputs = [Input(spec, "from example_inputs()") for spec in given]
    else:
        looked.inputs = guessed(source)
    looked.images = any(len(i.spec.shape or ()) == 4 for i in looked.inputs)
    return looked


def of_script(section: dict[str, Any]) -> Looked:
    """What trying a few shapes on a TorchScript module shows. Raises SourceError when it cannot be read."""
    from optkit.formats.torch.sources import open_source

    path = str(resolve_path(section["torchscript"], Path()).absolute())
    looked = Looked(dict(section))
    looked.inputs = guessed(open_source({"kind": "torchscript", "path": path}))
    looked.images = any(len(i.spec.shape or ()) == 4 for i in looked.inputs)
    return looked


def of_graph(section: dict[str, Any]) -> dict[str, Any]:
    """A frozen graph's `model:` section with what its inputs and outputs might be. Raises SourceError."""
    from optkit.formats.tensorflow.graph import candidates
    from optkit.formats.tensorflow.proto import read_graph

    inputs, outputs = candidates(read_graph(resolve_path(section["tf_graph"], Path())))
    return {**section, "inputs": inputs, "outputs": outputs}


def weights_beside(file: Path) -> Path | None:
    """Weights of the code's own name, in its folder; tensors alone, so that reading them runs no code."""
    return next((p for p in (file.with_suffix(s) for s in (".safetensors", ".pth", ".pt")) if p.is_file()), None)


def example_inputs(file: Path, source: Any) -> list[TensorSpec]:
    """The inputs that the file's own `example_inputs()` returns, axis 0 as the batch; none where it has none.

    It returns arrays or tensors by input name, or in forward's order.
    """
    if file.suffix != ".py" or "def example_inputs" not in file.read_text(encoding="utf-8", errors="replace"):
        return []
    import runpy
    import sys

    before = list(sys.path)
    sys.path.insert(0, str(file.absolute().parent))
    try:
        made = runpy.run_path(str(file))["example_inputs"]()
    except Exception as error:  # the user's code may fail in any way
        raise SourceError(
            f"example_inputs() in {file} raised {type(error).__name__}: {error}",
            hint="it should return arrays by input name",
        ) from error
    finally:
        sys.path[:] = before
    if not isinstance(made, Mapping):
        values = made if isinstance(made, tuple | list) else (made,)
        made = dict(zip(source.takes or [f"input_{n}" for n in range(len(values))], values, strict=False))
    if not all(hasattr(v, "shape") and hasattr(v, "dtype") for v in made.values()):
        raise SourceError(
            f"example_inputs() in {file} returned something that is no array",
            hint="it should return arrays by input name",
        )
    return [
        TensorSpec(name, dtype, ("batch", *map(int, value.shape[1:])), None, _whole(value) if "int" in dtype else None)
        for name, value in made.items() for dtype in [str(value.dtype).removeprefix("torch.")]
    ]  # fmt: skip


def _whole(value: Any) -> tuple[float, float]:
    low, high = int(value.min()), int(value.max())
    return (low, max(high, low + 1))


def guessed(source: Any) -> list[Input]:
    """Inputs under forward's own names, in the first shapes that the model runs with."""
    import torch

    names = [n for n in source.takes if n in source.required] or list(source.takes[:1]) or ["input"]
    for candidate in candidates(source.module, names):
        tensors = [example(torch, spec) for spec in candidate]
        try:
            with torch.no_grad():
                source.call(names, tensors)
        except Exception:  # a shape that does not fit fails in any way; the next one is tried
            continue
        return [
            Input(spec, CHECK + _TRIED if len(spec.shape or ()) > 2 else "the model ran with it") for spec in candidate
        ]
    first = next(candidates(source.module, names))
    return [Input(spec, _UNTRIED) for spec in first]


def candidates(module: Any, names: list[str]) -> Iterator[list[TensorSpec]]:
    """Shapes worth trying, from the first layer that fixes one and from the names of the inputs."""
    found = list(layers(module))
    kind, size = next(iter(found), ("", 0))
    rows = next((n for k, n in found if k == "Embedding"), 0)
    words = (0.0, float(rows - 1)) if rows > 1 else (0.0, 1.0)
    ids = ("batch", "sequence")
    if kind == "Embedding" or all(_is_text(name) for name in names):
        yield [TensorSpec(n, "int64", ids, None, (0.0, 1.0) if "mask" in n or "type" in n else words) for n in names]
    shapes: list[tuple[int | str, ...]] = []
    if kind == "Conv2d":
        shapes = [("batch", size, side, side) for side in _SIDES]
    elif kind == "Conv1d":
        shapes = [("batch", size, length) for length in (1024, 128, 16000, 64)]
    elif kind == "Conv3d":
        shapes = [("batch", size, 16, side, side) for side in (112, 32, 224)]
    elif kind == "Linear":
        shapes = [("batch", size), ("batch", 16, size)]
    elif kind in ("RNN", "LSTM", "GRU"):
        shapes = [("batch", 16, size)]
    shapes = [*shapes, ("batch", 16), ("batch", 3, 224, 224)]
    for shape in shapes:
        layout = "NCHW" if len(shape) == 4 else None
        yield [TensorSpec(n, "int64", ids, None, words) if _is_text(n) and len(names) > 1
               else TensorSpec(n, "float32", shape, layout) for n in names]  # fmt: skip


def layers(module: Any) -> Iterator[tuple[str, int]]:
    """Kind and input size of each layer that fixes one. Of a layer's class TorchScript keeps the name alone."""
    from torch import nn
    from torch.jit import ScriptModule

    kinds = {k.__name__: k for k in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding, nn.RNN, nn.LSTM, nn.GRU)}
    for layer in module.modules():
        if isinstance(layer, ScriptModule):
            kind = str(layer.original_name)
        else:
            kind = next((name for name, cls in kinds.items() if isinstance(layer, cls)), "")
        weight = getattr(layer, "weight", getattr(layer, "weight_ih_l0", None))
        if kind not in kinds or weight is None:
            continue
        axis = 0 if kind == "Embedding" else 1
        yield kind, int(weight.shape[axis]) * int(getattr(layer, "groups", 1) if kind.startswith("Conv") else 1)


def _is_text(name: str) -> bool:
    return name.endswith(("ids", "mask")) or "token" in name


def example(torch: Any, spec: TensorSpec) -> Any:
    """A tensor with two samples, 16 for every other dynamic dim; ones for ids, so that any table has them."""
    shape = [d if isinstance(d, int) else 2 if d == "batch" else 16 for d in spec.shape or ()]
    if spec.dtype == "int64":
        return torch.ones(shape, dtype=torch.int64)
    return torch.randn(shape)


def of_folder(section: dict[str, Any]) -> Looked:
    """What a Hugging Face folder's config says of the model's inputs; loads no backend. Raises SourceError."""
    folder = resolve_path(section["huggingface"], Path())
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder / 'config.json'} cannot be read: {error}", hint="copy the whole folder") from error
    vision = config.get("vision_config") or config
    if side := vision.get("image_size"):
        height, width = side if isinstance(side, list) else (side, side)
        spec = TensorSpec("pixel_values", "float32", ("batch", vision.get("num_channels", 3), height, width), "NCHW")
        return Looked(dict(section), [Input(spec)], images=True)
    if words := config.get("vocab_size"):
        names = token_inputs(folder, config)
        ranges = {"input_ids": (0.0, float(words - 1)), "token_type_ids": (0.0, 1.0), "attention_mask": (0.0, 1.0)}
        inputs = [Input(TensorSpec(n, "int64", ("batch", "sequence"), None, ranges[n])) for n in names]
        return Looked(dict(section), inputs, texts=True)
    channels = config.get("num_channels", 3)
    spec = TensorSpec("pixel_values", "float32", ("batch", channels, 224, 224), "NCHW")
    return Looked(
        dict(section), [Input(spec, CHECK + "the config names neither an image size nor a vocabulary")], images=True
    )


def token_inputs(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The token inputs: those its tokenizer makes, in so far as the model has a use for them."""
    names = ["input_ids", "attention_mask"]
    if int(config.get("type_vocab_size") or 0) > 1:
        names.append("token_type_ids")
    try:
        made = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("model_input_names")
    except (OSError, ValueError):
        made = None
    return [n for n in names if not made or n in made] or names
