"""Reads a recipe's sections one after the other, noting every mistake instead of stopping at the first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from optkit.errors import Problem, UserError, did_you_mean
from optkit.spec.dataspec import DataSpec, parse_data
from optkit.spec.sections import MODEL_KINDS, BaselineSpec, BenchmarkSpec, ModelSource, StepSpec
from optkit.spec.yamlread import Document, Key

TOP_KEYS = ("version", "name", "model", "inputs", "outputs", "dims", "data", "check_on", "metric", "steps", "deliver",
            "seed", "device", "threads", "speed", "blame", "gate", "baseline",
            "benchmark")  # fmt: skip

_SEED_LIMIT = 1 << 32  # NumPy's older generators and several backends take no larger seed


@dataclass
class Reader:
    """A document's sections as typed as they can be.

    problems: every mistake met so far. faults: the keys they are at, about which planning need say no more.
    """

    document: Document
    problems: list[Problem] = field(default_factory=list)
    faults: set[Key] = field(default_factory=set)

    def problem(self, key: Key, what: str, hint: str) -> None:
        self.problems.append(Problem(what, self.document.place(key), hint))
        self.faults.add(key)

    def top(self) -> None:
        """The keys themselves, and the version of their language."""
        for key in self.document.data:
            if key not in TOP_KEYS:
                self.unknown((), key, TOP_KEYS, "unknown key")
        version = self.document.data.get("version")
        if isinstance(version, bool) or version != 1:
            given = f"recipe version {version!r} is not known" if "version" in self.document.data else ""
            self.problem(("version",), given or "the recipe needs `version: 1`", "write `version: 1`")

    def unknown(self, key: Key, name: str, known: Sequence[str], what: str) -> None:
        """Note a key nobody knows."""
        hint = did_you_mean(name, known)
        self.problem((*key, name), f"{what} {name!r}", hint)
        self.misspelt(key, hint, self.document.data)

    def misspelt(self, key: Key, hint: str, value: Any) -> None:
        """The key that a hint names is as good as there, so that nobody complains that it lacks."""
        meant = re.fullmatch(r"did you mean '(.*)'\?", hint)
        if meant and meant[1] not in value:
            self.faults.add((*key, meant[1]))

    def name(self) -> str:
        value = self.word("name", self.document.file.stem if self.document.file else "model")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            if "name" not in self.document.data:
                return re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-._") or "model"
            what = f"the name {value!r:.80} cannot be a folder's name"
            self.problem(("name",), what, "use letters, digits, dot, dash and underscore")
        return value

    def word(self, key: str, default: str) -> str:
        value = self.document.data.get(key, default)
        if isinstance(value, str):
            return value
        self.problem((key,), f"{key}: should be a word, got {value!r:.80}", "put it in quotes")
        return default

    def number(self, key: str, default: int | None, least: int, most: int) -> int | None:
        value = self.document.data.get(key, default)
        if value is default or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
            return value
        self.problem((key,), f"{key}: got {value!r:.80}", f"give a whole number from {least} to {most}")
        return default

    def flag(self, key: str, default: bool) -> bool:
        value = self.document.data.get(key, default)
        if isinstance(value, bool):
            return value
        self.problem((key,), f"{key}: got {value!r:.80}", "give true or false")
        return default

    def seed(self) -> int:
        return self.number("seed", 0, 0, _SEED_LIMIT - 1) or 0

    def names(self, key: str, what: str = "names", example: str = "[first, second]") -> list[str]:
        value = self.document.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            self.problem((key,), f"{key}: should be a list of {what}, got {value!r:.80}", f"{key}: {example}")
            return []
        for index, item in enumerate(value):
            if item in value[:index]:
                self.problem((key, index), f"{key}: {item!r} is listed twice", "keep one")
        return value

    def mapping(self, key: str, read: Callable[[Any, Key], Any]) -> dict[str, Any]:
        value = self.document.data.get(key, {})
        if not isinstance(value, dict):
            self.problem((key,), f"{key}: should be a mapping of names, got {value!r:.80}", f"{key}: {{NAME: {{...}}}}")
            return {}
        if "" in value:
            self.problem((key,), f"{key}: a name is empty", "give it a name")
        made = {name: read(item, (key, name)) for name, item in value.items()}
        return {name: item for name, item in made.items() if item is not None}

    def table(self, key: str, section: type[Any]) -> dict[str, Any]:
        return self.mapping(key, lambda value, where: self.section(section, value, where, f"{key}.{where[-1]}."))

    def section(self, section: type[Any], value: Any, key: Key, title: str) -> Any:
        """The typed section; with mistakes, what is left of it without the keys they are in, or None."""
        if not isinstance(value, dict):
            what = f"{title.rstrip('.: ')}: should be a mapping, got {value!r:.80}"
            self.problem(key, what, f"its keys are: {', '.join(aliases(section))}")
            return None
        try:
            return section.model_validate(value)
        except ValidationError as error:
            spoilt = {item["loc"][0] for item in error.errors(include_url=False) if item["loc"]}
            self.told(explain(error, value, title, section), key)
            for name in spoilt - set(aliases(section)):
                self.misspelt(key, did_you_mean(str(name), aliases(section)), value)
        try:
            return section.model_validate({k: v for k, v in value.items() if k not in spoilt})
        except ValidationError:
            self.faults.add(key)
            return None

    def told(self, found: Iterator[tuple[Key, str, str]], key: Key) -> None:
        for inner, what, hint in found:
            self.problem((*key, *inner), what, hint)

    def baseline(self) -> BaselineSpec | None:
        value = self.document.data.get("baseline")
        if value is None:
            return None
        if isinstance(value, str):
            value = {"file": value}
        made: BaselineSpec | None = self.section(BaselineSpec, value, ("baseline",), "baseline.")
        return made

    def benchmark(self) -> BenchmarkSpec | None:
        value = self.document.data.get("benchmark")
        if value is None:
            return None
        made: BenchmarkSpec | None = self.section(BenchmarkSpec, value, ("benchmark",), "benchmark.")
        return made

    def model(self) -> ModelSource:
        """The source model; an empty stand-in, and a fault at ("model",), where nothing tells what it is."""
        value = self.document.data.get("model")
        kinds = [kind for kind in MODEL_KINDS if isinstance(value, dict) and kind in value]
        if len(kinds) == 1:
            made: ModelSource | None = self.section(MODEL_KINDS[kinds[0]], value, ("model",), "model.")
            if made is not None:
                return made
        elif isinstance(value, dict):
            named = f"names {len(kinds)} kinds of source: {', '.join(kinds)}" if kinds else "names no kind of source"
            near = [hint for word in value if (hint := did_you_mean(word, MODEL_KINDS, listing=False))]
            self.problem(("model",), f"model: {named}", near[0] if near and not kinds else _KINDS)
        elif "model" in self.document.data:
            self.problem(("model",), f"model: should be a mapping, got {value!r:.80}", _KINDS)
        elif ("model",) not in self.faults:
            hint = "add `model: {torch: FILE.py:build}` or `model: {onnx: FILE}`"
            self.problem(("model",), "the recipe names no model", hint)
        kind = MODEL_KINDS[kinds[0] if len(kinds) == 1 else "file"]
        self.faults.add(("model",))
        return kind.model_construct(None, **dict.fromkeys(kind.model_fields, ""))

    def dataset(self, value: Any, key: Key) -> DataSpec | None:
        title = f"data.{key[-1]}"
        if not isinstance(value, dict):
            self.problem(key, f"{title}: should be a mapping, got {value!r:.80}", "for example {npz: FILE}")
            return None
        try:
            return parse_data(value)
        except ValidationError as error:
            self.told(explain(error, value, f"{title}.", None), key)
        except (UserError, ValueError) as error:
            hint = getattr(error, "hint", "") or "for example {npz: FILE}"
            self.problem(key, f"{title}: {getattr(error, 'what', error)}", hint)
        self.faults.add(key)
        return None

    def steps(self) -> list[StepSpec]:
        """The steps, as many as are written; one that cannot be read is a stand-in with a fault at ("steps", index)."""
        value = self.document.data.get("steps")
        if not isinstance(value, list) or not value:
            what = f"steps: should be a list, got {value!r:.80}" if value else "the recipe has no steps"
            if ("steps",) not in self.faults:
                self.problem(("steps",), what, "steps: [{id: onnx, to: onnx}]")
            self.faults.add(("steps",))
            return []
        return [self.step(item, index) for index, item in enumerate(value)]

    def step(self, item: Any, index: int) -> StepSpec:
        written = item.get("id") if isinstance(item, dict) else None
        name = written if isinstance(written, str) and written else f"steps[{index}]"
        title = f"{name}: " if name.endswith("]") else f"step {name}: "
        made: StepSpec | None = self.section(StepSpec, item, ("steps", index), title)
        if made is not None:
            return made
        try:
            # Only the id is at fault: the rest of the step can still be planned, and its own mistakes told.
            rest = {k: v for k, v in dict(item, id="x").items() if ("steps", index, k) not in self.faults}
            spec = StepSpec.model_validate({**rest, "id": "x"})
            self.faults.discard(("steps", index))
        except (ValidationError, TypeError, ValueError):
            spec = StepSpec.model_validate({"id": "x"})
        return spec.model_copy(update={"id": name})


_KINDS = f"one of: {', '.join(MODEL_KINDS)}"


def aliases(section: type[BaseModel]) -> list[str]:
    """The keys of a section, as they are written."""
    return [info.alias or name for name, info in section.model_fields.items()]


def explain(
    error: ValidationError, value: Any, title: str, section: type[BaseModel] | None
) -> Iterator[tuple[Key, str, str]]:
    """A pydantic error about `value` in optkit's words: where in it, what is wrong, one thing to try.

    title: what each message begins with, such as "inputs.image." or "step int8: ".
    """
    met: set[Key] = set()
    items = error.errors(include_url=False)
    hints = {did_you_mean(str(item["loc"][-1]), aliases(section)) for item in items
             if item["type"] == "extra_forbidden" and section and len(item["loc"]) == 1}  # fmt: skip
    for item in items:
        kind, loc = item["type"], item["loc"]
        if kind == "missing" and f"did you mean {loc[-1]!r}?" in hints:
            continue
        named = kind in ("extra_forbidden", "missing")
        inner = _inside(value, loc[:-1] if named else loc)
        place = (*inner, loc[-1]) if named else inner
        if place in met:  # one mistake seen from each side of a union
            continue
        met.add(place)
        what, hint = _words(item, place, section)
        shown = ".".join(str(part) for part in inner)
        prefix = f"{title}{shown}: " if shown else title if title.endswith(": ") else f"{title.rstrip('.')}: "
        at_odds = kind in ("value_error", "assertion_error") and not place
        yield place, f"{prefix}{what}", hint or ("change or drop what is named" if at_odds else _about(section, place))


def _inside(value: Any, loc: Sequence[str | int]) -> Key:
    """The part of an error's location that is in the data; the rest names types tried there."""
    inner: list[str | int] = []
    for part in loc:
        try:
            value = ({} if isinstance(value, str) else value)[part]
        except (LookupError, TypeError):
            break
        inner.append(part)
    return tuple(inner)


def _words(item: Any, place: Key, section: type[BaseModel] | None) -> tuple[str, str]:
    kind, given = item["type"], item["input"]
    if kind == "extra_forbidden":
        known = aliases(section) if section and len(place) == 1 else []
        return f"unknown key {place[-1]!r}", did_you_mean(str(place[-1]), known) or "remove it"
    if kind == "missing":
        return f"lacks the key {place[-1]!r}", ""
    if kind in ("value_error", "assertion_error"):
        what, _, hint = str(item["ctx"]["error"]).partition("; ")
        return what, hint
    if kind == "literal_error":
        expected = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        hint = did_you_mean(str(given), expected) if expected else f"one of: {item['ctx']['expected']}"
        return f"{given!r:.80} is not one of {item['ctx']['expected']}", hint
    if kind == "string_pattern_mismatch":
        return f"{given!r:.80} has characters it may not have", ""
    if kind in ("tuple_type", "list_type") and not isinstance(given, Mapping):
        hint = f"put it in brackets: [{given!r}]" if isinstance(given, str) else ""
        return f"should be a list, got {given!r:.80}", hint
    if kind in ("dict_type", "model_type", "model_attributes_type", "dataclass_type"):
        return f"should be a mapping, got {given!r:.80}", ""
    text = item["msg"].removeprefix("Input ")
    quotable = kind == "string_type" and isinstance(given, bool | int | float)
    return f"{text[:1].lower()}{text[1:]}, got {given!r:.80}", "put it in quotes" if quotable else ""


def _about(section: type[BaseModel] | None, place: Key) -> str:
    """What a key is for, in its section's own words."""
    for name, info in (section.model_fields if section else {}).items():
        if place and place[0] == (info.alias or name) and info.description:
            return f"{place[0]}: {info.description}"
    return f"its keys are: {', '.join(aliases(section))}" if section else "correct or remove it"
