"""A recipe for a model, written by looking at it: what `optkit init` prints into a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optkit.artifact import Signature, TensorSpec
from optkit.cli.yamltext import flow, plain, relocated, scalar, with_note
from optkit.errors import UserError

CHECK = "check this: "
"""Begins the comment on every value that was guessed."""

_LENGTHS = re.compile(r"seq|len|token|time|frame|word", re.IGNORECASE)


@dataclass(frozen=True)
class Input:
    """An input as it will be written, and what its comment says."""

    spec: TensorSpec
    note: str = ""


@dataclass
class Looked:
    """What looking at a model found.

    section: the recipe's `model:` section; `notes` are comments on its keys. inputs: in order; empty where the
    file's own say all. texts, images: whether the model takes token ids or pictures, for the advice on data.
    """

    section: dict[str, Any]
    inputs: list[Input] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    texts: bool = False
    images: bool = False


def write(model: str, folder: Path, to: Sequence[str] = (), weights: str | None = None) -> str:
    """The text of a commented recipe for `model`, its paths relative to `folder`; it has been planned without errors.

    model: a .onnx, .xml or .pt2 file, a Hugging Face folder or FILE.py:NAME (which is imported, and built). `to`: the
    formats; none means every one that a faithful conversion leads to. Raises SourceError for a model that cannot be
    opened, UserError for what is no model.
    """
    from optkit.planning import make_plan
    from optkit.recipe import recipe_from_text

    text = render(look(model, weights), model, folder, to)
    make_plan(recipe_from_text(text, folder))
    return text


def look(model: str, weights: str | None = None) -> Looked:
    """What can be found out about a model. Raises as `write` does."""
    from optkit.drafting.shorthand import model_section

    section = model_section(model, weights)
    kind = next(iter(section))
    if kind == "torch":
        from optkit.cli.guessing import of_factory

        return of_factory(section)
    if kind == "huggingface":
        from optkit.cli.guessing import of_folder

        return of_folder(section)
    if kind == "torchscript":
        from optkit.cli.guessing import of_script

        return of_script(section)
    notes = {}
    if kind == "tf_graph":
        from optkit.cli.guessing import of_graph

        section = of_graph(section)
        notes = {"inputs": CHECK + "the placeholders of the graph", "outputs": CHECK + "what no other node takes"}
    signature = describe(section)
    names = dim_names(signature.inputs)
    return Looked(section, [_named(spec, names) for spec in signature.inputs], notes)


def describe(section: Mapping[str, Any]) -> Signature:
    """The signature of a model file. Raises SourceError when it cannot be read."""
    from optkit.models.opened import described

    return described(section)


def dim_names(inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """A name that a recipe can hold for each dynamic dim; one that several inputs share stays one."""
    names: dict[str, str] = {}
    for spec in inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, str):
                names.setdefault(dim, dim_name(dim, axis, spec.name))
    return names


def _named(spec: TensorSpec, names: Mapping[str, str]) -> Input:
    """The input with every dynamic dim under a name that a recipe can hold."""
    if spec.shape is None:
        raise UserError(
            f"input {spec.name} has no known rank, so no shape can be written for it",
            hint="export the model with shapes, or write the recipe by hand",
        )
    shape = tuple(d if isinstance(d, int) else names[d] for d in spec.shape)
    nameless = any(isinstance(d, str) and (names[d] != d or made_up(d, n, spec.name)) for n, d in enumerate(spec.shape))
    return Input(
        TensorSpec(spec.name, spec.dtype, shape, spec.layout, spec.range or default_range(spec)),
        "the file has no names for its dynamic dims" if nameless else "",
    )


def dim_name(name: str, axis: int, tensor: str) -> str:
    """A dim's own name where the file gives it one, else "batch" for axis 0 and TENSOR_AXIS after it."""
    if not made_up(name, axis, tensor) and re.fullmatch(r"[A-Za-z]\w*", name):
        return name
    word = re.sub(r"\W", "_", tensor)
    return "batch" if axis == 0 else f"{word if word[:1].isalpha() else f'x{word}'}_{axis}"


def made_up(name: str, axis: int, tensor: str) -> bool:
    """Whether an exporter or a runner made up the dim's name."""
    return name == f"{tensor}_{axis}" or re.match(r"unk_|dyn|dim_|s\d+$|\W", name) is not None


def default_range(spec: TensorSpec) -> tuple[float, float] | None:
    """A range for integers, without which no sample could be made up; None for floats."""
    return (0, 1) if spec.dtype.startswith(("int", "uint")) else None


def render(looked: Looked, model: str, folder: Path, to: Sequence[str]) -> str:
    """The recipe's text. `model` is what the user typed."""
    from optkit.drafting.shorthand import model_name

    section = looked.section
    kind = next(iter(section))
    source = kind if kind in ("onnx", "openvino", "savedmodel", "keras", "tf_graph") else "torch"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model_name(model)).strip("-.") or "model"
    lines = [
        f"# Written by `optkit init {plain(model)}`. Values marked with {CHECK.strip()!r} were guessed.",
        "# Next: optkit plan, then optkit convert, each with this file. Paths start from this file's folder.",
        "version: 1", f"name: {scalar(name)}", "model:",
    ]  # fmt: skip
    for key, value in section.items():
        shown = relocated(str(value), folder) if key in _PATHS else value
        text = flow(shown) if isinstance(shown, list) else scalar(shown)
        lines.append(with_note(f"  {key}: {text}", looked.notes.get(key, "")))
    if looked.inputs:
        lines += [
            "",
            "inputs:",
            *(with_note(f"  {scalar(i.spec.name)}: {flow(_spec(i.spec))}", i.note) for i in looked.inputs),
        ]
        lines += _dims(looked.inputs)
    lines += ["", *_data(looked), "", "steps:", *_steps(source, to, scripted="torchscript" in section), ""]
    return "\n".join(lines)


_PATHS = (
    "torch",
    "onnx",
    "openvino",
    "pt2",
    "torchscript",
    "huggingface",
    "weights",
    "savedmodel",
    "keras",
    "tf_graph",
)
"""Keys of `model:` that hold a path."""


def _spec(spec: TensorSpec) -> dict[str, Any]:
    data = spec.to_json()
    return {key: data[key] for key in ("shape", "dtype", "layout", "range") if key in data}


def _dims(inputs: Sequence[Input]) -> list[str]:
    names = list(dict.fromkeys(d for i in inputs for d in i.spec.dynamic))
    if not names:
        return []
    ranges = {name: (8, 64, 128) if _LENGTHS.search(name) else (1, 8, 64) for name in names}
    note = CHECK + "the sizes it will be used with; each check visits them"
    lines = ["dims:"]
    for name, (low, opt, high) in ranges.items():
        text = f"  {scalar(name)}: {flow({'min': low, 'opt': opt, 'max': high})}"
        lines.append(with_note(text, note if name == names[0] else ""))
    return lines


def _data(looked: Looked) -> list[str]:
    lines = [
        "# Random samples prove that a conversion computes the same thing, not that a quantised model is good enough.",
        "# Real ones, and other ones to calibrate on:",
    ]
    if looked.texts:
        folder = scalar(looked.section.get("huggingface", "TOKENIZER_FOLDER"))
        lines += [
            f"#   judge: {{jsonl: judge.jsonl, tokenizer: {folder}, text: text, max_length: 128}}",
            f"#   fit: {{jsonl: fit.jsonl, tokenizer: {folder}, text: text, max_length: 128}}",
        ]
    else:
        name = looked.inputs[0].spec.name if looked.inputs else "the input"
        lines += [
            f"#   judge: {{npz: judge.npz}}   # an array named {plain(name)}, its axis 0 counts the samples",
            "#   fit: {npz: fit.npz}",
        ]
    if looked.images:
        lines.append("#   judge: {images: FOLDER, preprocess: {resize: 256, crop: [224, 224], scale: 1/255}}")
    return [*lines, "data:", "  judge: {random: 32}", "check_on: judge"]


_ELSEWHERE = frozenset({"edgetpu", "tensorrt"})
"""Formats that need a device few machines have: offered to those who ask, and proven where it is."""


def _steps(source: str, to: Sequence[str], *, scripted: bool = False) -> list[str]:
    """Step lines: the targets, then, as a comment, a lossy pass on each of them."""
    from optkit.registry import passes

    targets = list(dict.fromkeys(to)) or [target for target in reachable(source) if target not in _ELSEWHERE]
    # The default exporter, torch.export, reads no TorchScript.
    options: dict[str, Any] = {"onnx": {"with": {"exporter": "torchscript"}}} if scripted else {}
    options |= {target: {"on_target": True} for target in _ELSEWHERE}
    lines = [f"  - {flow({'id': target, 'to': target, **options.get(target, {})})}" for target in targets]
    if not lines:  # nothing to convert to: a pass that keeps the format
        use = next((p for p in passes().values() if p.source == p.target == source and p.fidelity != "lossy"
                    and p.needs_data is False), None)  # fmt: skip
        if use is None:
            raise UserError(f"no conversion leads on from {source}", hint="optkit passes lists what there is")
        lines.append(f"  - {flow({'id': use.name.rpartition('.')[2], 'use': use.name})}")
    examples: list[str] = []
    for end in targets or [source]:
        use = next((p for p in passes().values() if p.fidelity == "lossy" and p.source == p.target == end), None)
        if use is not None:
            parent = end if end in targets else "source"
            examples += [f"- id: {use.name.replace('.', '-')}", f"  from: {parent}", f"  use: {use.name}"]
            tunes = '  with: {budget: ["cosine >= 0.992"], tune: true}  # settings are looked for'
            examples += [tunes] if "tune" in use.options.model_fields else []
            examples += [*(["  data: fit"] if use.needs_data else []), '  check: ["cosine >= 0.99"]']
    if examples:
        lines.append("  # Smaller and faster, at a cost in accuracy that the bounds limit:")
    return [*lines, *(f"  # {line}" for line in examples)]


def reachable(source: str) -> list[str]:
    """The formats that a single faithful chain of conversions leads to."""
    from optkit.registry import NoRouteError, formats, route

    found = []
    for target in formats():
        if target not in (source, "torch"):
            try:
                route(source, target)
            except NoRouteError:
                continue
            found.append(target)
    return found
