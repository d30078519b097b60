"""YAML text to plain data that remembers where each value stood."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from optkit.errors import Location, Problem, RecipeError, did_you_mean

Key = tuple["str | int", ...]

MAX_BYTES = 1 << 20
"""A file over this size is no recipe."""

MAX_DEPTH = 64
"""Levels of nesting; a recipe has about six."""

MAX_VALUES = 100_000
"""Values once every alias is replaced by what it stands for: a few lines of nested aliases can mean billions."""

_QUOTE = "put it in quotes"


@dataclass
class Document:
    """Plain data and, per key path, the place of its key (or of the item, in a list)."""

    data: Any
    file: Path | None
    places: dict[Key, Location] = field(default_factory=dict)
    assigned: list[str] = field(default_factory=list)
    """Overrides that were applied, as written."""

    def place(self, key: Sequence[str | int]) -> Location | None:
        """The place of `key`, or of the nearest enclosing key that has one."""
        path = tuple(key)
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Location(self.file) if self.file else None)


def read_yaml(path: Path) -> Document:
    """The document in a file. Raises RecipeError for a missing or unreadable file, bad syntax or a repeated key."""
    place = Location(path, 1)
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        if len(data) <= MAX_BYTES:
            return parse_yaml(data.decode("utf-8"), path)
        problem = Problem(f"the recipe is over {MAX_BYTES >> 20} MiB", place, "a recipe is a few kilobytes of YAML")
    except FileNotFoundError:
        problem = Problem(f"there is no recipe at {path}", None, _near(path))
    except IsADirectoryError:
        problem = Problem(f"{path} is a folder, not a recipe", None, "name the .yaml file in it")
    except UnicodeDecodeError as error:
        place = Location(path, data.count(b"\n", 0, error.start) + 1)
        problem = Problem(f"the recipe is not UTF-8 text: {error.reason}", place, "save it as UTF-8")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        what = getattr(error, "strerror", None) or error
        problem = Problem(f"the recipe cannot be read: {what}", place, "check the path and its permissions")
    raise RecipeError([problem])


def _near(path: Path) -> str:
    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError:
        names = []
    return did_you_mean(path.name, names) or "check the path"


def parse_yaml(text: str, path: Path | None) -> Document:
    """The document in `text`; `path` is what its places are said to be in. Raises RecipeError."""
    import yaml

    loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    file = path or Path("<recipe>")
    try:
        _shallow(yaml.parse(text, Loader=loader), file)
        node = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        hint = "indent with spaces, not tabs" if "\t" in _line(text, mark) else "quote values that hold : # { or ["
        raise RecipeError([Problem(f"this is not valid YAML: {what}", _place(file, mark), hint)]) from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:  # a control character, half a surrogate pair
        position = getattr(error, "position", getattr(error, "start", 0))
        where = Location(file, text.count("\n", 0, position) + 1)
        raise RecipeError(
            [Problem("this is not valid YAML: it holds a character that is no text", where, "save it as plain UTF-8")]
        ) from error
    if node is None:
        raise RecipeError([Problem("the recipe is empty", Location(file, 1), "optkit init MODEL writes one")])
    return _Builder(Document(None, path), file, loader("")).document_of(node)


def _line(text: str, mark: Any) -> str:
    lines = text.split("\n")
    return lines[mark.line] if mark and mark.line < len(lines) else ""


def _place(file: Path, mark: Any) -> Location:
    return Location(file, mark.line + 1, mark.column + 1) if mark else Location(file, 1)


def _shallow(events: Iterable[Any], file: Path) -> None:
    """Raise RecipeError for nesting that would overflow the stack of whoever walks it."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _too_deep(_place(file, event.start_mark))


def _too_deep(where: Location) -> RecipeError:
    return RecipeError(
        [Problem(f"this is nested over {MAX_DEPTH} levels deep", where, "a recipe needs no more than ten")]
    )


@dataclass
class _Builder:
    """Nodes to plain data, noting places and every mistake."""

    document: Document
    file: Path
    loader: Any
    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    def document_of(self, node: Any) -> Document:
        self.document.places[()] = _place(self.file, node.start_mark)
        self.document.data = self.value(node, ())
        if self.problems:
            raise RecipeError(self.problems)
        return self.document

    def value(self, node: Any, key: Key) -> Any:
        import yaml

        self.count += 1
        if len(key) > MAX_DEPTH:  # an alias that stands for what it is in
            raise _too_deep(_place(self.file, node.start_mark))
        if self.count > MAX_VALUES:
            place = _place(self.file, node.start_mark)
            raise RecipeError([Problem(f"this makes over {MAX_VALUES} values", place, "use fewer aliases (*name)")])
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.document.places[(*key, index)] = _place(self.file, item.start_mark)
                items.append(self.value(item, (*key, index)))
            return items
        return self.scalar(node)

    def mapping(self, node: Any, key: Key) -> dict[str, Any]:
        import yaml

        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = _place(self.file, key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem("a key must be a word", where, "write it as plain text"))
                continue
            name = str(key_node.value)
            if name in data:
                first = self.document.places[(*key, name)]
                hint = f"the first is at {first}; keep one"
                self.problems.append(Problem(f"the key {name!r} is given twice", where, hint))
                continue
            if name == "<<" and key_node.tag.endswith(":merge"):
                self.problems.append(Problem("merge keys (<<) are not read here", where, "repeat the keys"))
                continue
            self.document.places[(*key, name)] = where
            data[name] = self.value(value_node, (*key, name))
        return data

    def scalar(self, node: Any) -> Any:
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and ":" in node.value:
            return node.value  # YAML 1.1 reads 1:30 as ninety
        try:
            value = self.loader.construct_object(node)
        except Exception as error:  # the constructors raise whatever int(), float() and datetime() do
            text = " ".join(str(getattr(error, "problem", None) or error).split())
            self.note(node, f"this value cannot be read: {text[:200]}", _QUOTE)
            return None
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 64:
            self.note(node, "this number has over 64 bits", _QUOTE)
        elif isinstance(value, float) and not math.isfinite(value):
            self.note(node, f"this number is not finite: {node.value}", "give a finite number")
        elif not isinstance(value, str | int | float | None):
            self.note(node, f"YAML reads {node.value!r} as a {type(value).__name__}", _QUOTE)
        else:
            return value
        return None

    def note(self, node: Any, what: str, hint: str) -> None:
        self.problems.append(Problem(what, _place(self.file, node.start_mark), hint))


def plain_document(data: Mapping[str, Any]) -> Document:
    """The document of data that a program made: tuples become lists, paths and NumPy scalars what they stand for.

    Raises RecipeError for values that YAML could not hold.
    """
    problems: list[Problem] = []

    def plain(value: Any, key: Key) -> Any:
        if len(key) > MAX_DEPTH:
            raise RecipeError([Problem(f"this is nested over {MAX_DEPTH} levels deep", None, "is it part of itself?")])
        if isinstance(value, Mapping):
            return {str(name): plain(item, (*key, str(name))) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item, (*key, index)) for index, item in enumerate(value)]
        if isinstance(value, PurePath):
            return str(value)
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            value = value.item()
        if isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value)):
            return value
        where = ".".join(str(part) for part in key)
        problems.append(Problem(f"{where}: a recipe cannot hold {value!r:.100}", None, "use text, numbers or lists"))
        return None

    document = Document(plain(data, ()), None)
    if problems:
        raise RecipeError(problems)
    return document


def set_value(document: Document, assignment: str) -> None:
    """Apply one `key.path=value` override; the value is read as YAML. Steps are addressed by id.

    Raises RecipeError when the assignment has no "=", or its path leads through something that is not there.
    """
    path, equals, text = assignment.partition("=")
    where = Location(Path(f"--set {assignment}"))
    words = path.strip().split(".")
    if not equals or not all(words):
        what = f"--set needs key=value, got {assignment!r}"
        raise RecipeError([Problem(what, where, "for example --set steps.int8.with.per_channel=false")])
    try:
        value = parse_yaml(text, where.file).data if text.strip() else ""
    except RecipeError as error:
        raise RecipeError([Problem(f"--set {path}: {p.what}", where, p.hint) for p in error.problems]) from error
    holder: Any = document.data
    step: str | int
    trail: list[str | int] = []
    while words:
        if isinstance(holder, list):
            step, used = _item(holder, words, path)
        elif isinstance(holder, dict):
            step, used = words[0], 1
        else:
            shown = ".".join(map(str, trail)) or "the recipe"
            raise RecipeError([Problem(f"--set {path}: {shown} holds a value, not keys", where, "shorten the path")])
        trail.append(step)
        words = words[used:]
        if words:
            if isinstance(holder, dict) and holder.get(str(step)) is None:
                holder[str(step)] = {}
                document.places.setdefault(tuple(trail), where)
            holder = holder[step]
            continue
        holder[step] = value
        for key in [key for key in document.places if key[: len(trail)] == tuple(trail)]:
            del document.places[key]
        document.places[tuple(trail)] = where


def _item(holder: Sequence[Any], words: Sequence[str], path: str) -> tuple[int, int]:
    """The index of a list's item by its id (which may hold dots) or number, and how many words that took."""
    ids = {str(item["id"]): n for n, item in enumerate(holder) if isinstance(item, Mapping) and "id" in item}
    for used in range(len(words), 0, -1):
        if ".".join(words[:used]) in ids:
            return ids[".".join(words[:used])], used
    if words[0].isdecimal() and int(words[0]) < len(holder):
        return int(words[0]), 1
    hint = did_you_mean(words[0], ids) or f"it has {len(holder)} items, counted from 0"
    raise RecipeError(
        [Problem(f"--set {path}: nothing here is called {words[0]!r}", Location(Path(f"--set {path}")), hint)]
    )
