"""What the tests of torch.prune share: models of the zoo at rest, and a step run by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import prune_zoo as zoo
import pytest
from torch_kit import descriptor, out_dir

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.errors import OptkitError
from optkit.formats.torch import model as torch_model
from optkit.passes.torch_prune import PASS, TorchPrune
from optkit.plugin import Context
from optkit.runners.torch_runner import RUNNER
from optkit.tasks.making import reread

ZOO = Path(zoo.__file__)
DIMS = {"batch": Dim(1, 4, 8), "sequence": Dim(2, 8, 24)}
IMAGE = TensorSpec("image", "float32", ("batch", 3, 32, 32))
PIXELS = replace(IMAGE, name="pixel_values")
IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"), None, (0, 63))
WIDE = TensorSpec("x", "float32", ("batch", "sequence", 32))
SERIES = TensorSpec("x", "float32", ("batch", "sequence", 8))

Spec = tuple[TensorSpec, list[str] | None]
MODELS: dict[str, Spec] = {
    "resnet": (IMAGE, None), "vgg": (IMAGE, None), "UNet": (IMAGE, None), "mobilenet": (IMAGE, None),
    "Attention": (SERIES, None), "Relative": (SERIES, None), "bert": (IDS, ["last_hidden_state"]),
    "deberta": (IDS, ["last_hidden_state"]), "gpt2": (IDS, ["logits"]), "llama": (IDS, ["logits"]),
    "vit": (PIXELS, ["logits"]), "convnext": (PIXELS, ["logits"]), "swin": (PIXELS, ["logits"]),
}  # fmt: skip


def source(folder: Path, name: str, **rest: Any) -> Artifact:
    """A model of the zoo at rest, as a run starts from it."""
    spec, outputs = {
        **MODELS, "Fixed": (WIDE, None), "Biased": (WIDE, None), "Shuffle": (IMAGE, None),
        "Recurrent": (SERIES, None), "Borrowed": (IMAGE, None),
        "Shifted": (TensorSpec("x", "float32", ("batch", 8)), None),
        "Single": (TensorSpec("x", "float32", ("batch", 8)), None),
    }[name]  # fmt: skip
    return at_rest(descriptor(folder, [spec], f"{ZOO}:{name}", outputs, **rest))


def at_rest(path: Path) -> Artifact:
    signature = RUNNER.describe(path, {"dims": {name: dim.to_json() for name, dim in DIMS.items()}})
    return Artifact("torch", path, "digest", signature, (path.name,))


def context(artifact: Artifact, folder: Path, **rest: Any) -> Context:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    assert artifact.signature is not None
    return Context(artifact.signature.inputs, tuple(t.name for t in artifact.signature.outputs), DIMS, scratch, **rest)


def pruned(
    folder: Path, artifact: Artifact, rest: dict[str, Any] | None = None, **options: Any
) -> tuple[Artifact, Any]:
    """The pruned artifact, confirmed, and the notes."""
    given, chosen, out = context(artifact, folder, **(rest or {})), TorchPrune(**options), out_dir(folder)
    notes = PASS.run(artifact, out, chosen, given)
    json.dumps(notes, allow_nan=False)
    made = reread(PASS, artifact, out, given)
    assert PASS.confirm is not None
    assert PASS.confirm(artifact, made, chosen, given) == []
    return made, notes


def refused(folder: Path, artifact: Artifact, rest: dict[str, Any] | None = None, **options: Any) -> OptkitError:
    with pytest.raises(OptkitError) as caught:
        PASS.run(artifact, out_dir(folder), TorchPrune(**options), context(artifact, folder, **(rest or {})))
    assert caught.value.hint
    return caught.value


def feeds_of(artifact: Artifact, seed: int = 1) -> dict[str, Any]:
    from optkit.formats.torch.feeds import example_feeds

    assert artifact.signature is not None
    return example_feeds(artifact.signature.inputs, DIMS, {"batch": 3, "sequence": 6}, seed)


def answers(artifact: Artifact, feeds: dict[str, Any]) -> dict[str, Any]:
    return torch_model.load(artifact.path).call(feeds)


def module_of(artifact: Artifact) -> Any:
    return torch_model.load(artifact.path).source.module
