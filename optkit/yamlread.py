"""YAML text to plain data that remembers where each value stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optkit.errors import Location, Problem, RecipeError

Key = tuple["str | int", ...]


@dataclass
class Document:
    """Plain data and, per key path, the place of its key (or of the item, in a list)."""

    data: Any
    file: Path | None
    places: dict[Key, Location] = field(default_factory=dict)

    def place(self, key: Sequence[str | int]) -> Location | None:
        """The place of `key`, or of the nearest enclosing key that has one."""
        path = tuple(key)
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Location(self.file) if self.file else None)


def read_yaml(path: Path) -> Document:
    """The document in a file. Raises RecipeError for a missing or unreadable file, bad syntax or a repeated key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = f"in {path.parent} there is: {', '.join(sorted(near)[:5])}" if near else "check the path"
        raise RecipeError([Problem(f"there is no recipe at {path}", None, hint)]) from None
    except IsADirectoryError:
        raise RecipeError([Problem(f"{path} is a folder, not a recipe", None, "name the .yaml file in it")]) from None
    except UnicodeDecodeError as error:
        raise RecipeError([Problem("the recipe is not UTF-8 text", Location(path), str(error))]) from error
    except OSError as error:
        raise RecipeError([Problem(f"the recipe cannot be read: {error.strerror}", Location(path))]) from error
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path | None) -> Document:
    """The document in `text`; `path` is what its places are said to be in. Raises RecipeError."""
    import yaml

    loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    file = path or Path("<recipe>")
    try:
        node = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = Location(file, mark.line + 1, mark.column + 1) if mark else Location(file)
        what = " ".join(part for part in (error.context, error.problem) if part)
        hint = "indent with spaces, not tabs" if "\\t" in what else "quote values that hold ':' '#' '{' or '['"
        raise RecipeError([Problem(f"this is not valid YAML: {what}", where, hint)]) from error
    except yaml.YAMLError as error:
        raise RecipeError([Problem(f"this is not valid YAML: {error}", Location(file))]) from error
    if node is None:
        raise RecipeError([Problem("the recipe is empty", Location(file), "optkit init MODEL writes one")])
    document = Document(None, path)
    problems: list[Problem] = []
    document.data = _value(node, (), document, file, loader(""), problems)
    if problems:
        raise RecipeError(problems)
    return document


def _value(node: Any, key: Key, document: Document, file: Path, loader: Any, problems: list[Problem]) -> Any:
    import yaml

    if isinstance(node, yaml.MappingNode):
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = Location(file, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if name is None:
                problems.append(Problem("a key must be a word", where, "write it as plain text"))
                continue
            if name in data:
                problems.append(Problem(f"the key {name!r} is given twice", where,
                                        f"the first is at {document.places[(*key, name)]}; keep one"))
                continue
            document.places[(*key, name)] = where
            data[name] = _value(value_node, (*key, name), document, file, loader, problems)
        return data
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            mark = item.start_mark
            document.places[(*key, index)] = Location(file, mark.line + 1, mark.column + 1)
            items.append(_value(item, (*key, index), document, file, loader, problems))
        return items
    try:
        return loader.construct_object(node)
    except yaml.YAMLError as error:
        mark = node.start_mark
        problems.append(Problem(f"this value cannot be read: {error}", Location(file, mark.line + 1, mark.column + 1)))
        return None


def set_value(document: Document, assignment: str) -> None:
    """Apply one `key.path=value` override; the value is read as YAML. Steps are addressed by id.

    Raises RecipeError when the assignment has no "=", or its path leads through something that is not there.
    """
    path, equals, text = assignment.partition("=")
    where = Location(Path(f"--set {assignment}"))
    if not equals or not path:
        raise RecipeError([Problem(f"--set needs key=value, got {assignment!r}", None,
                                   "for example --set steps.int8.with.per_channel=false")])
    value = parse_yaml(text, where.file).data if text.strip() else ""
    keys = path.split(".")
    holder: Any = document.data
    trail: list[str | int] = []
    for position, word in enumerate(keys):
        last = position == len(keys) - 1
        step: str | int = word
        if isinstance(holder, list):
            ids = {item.get("id"): n for n, item in enumerate(holder) if isinstance(item, Mapping)}
            # A step's id may itself hold dots.
            step = int(word) if word.isdigit() and int(word) < len(holder) else ids.get(word, -1)
            if step == -1:
                from optkit.errors import did_you_mean

                names = [str(name) for name in ids if name]
                raise RecipeError([Problem(f"--set {path}: nothing here is called {word!r}", None,
                                           did_you_mean(word, names))])
        elif not isinstance(holder, dict):
            raise RecipeError([Problem(f"--set {path}: {'.'.join(map(str, trail))} holds a value, not keys", None,
                                       "shorten the path")])
        trail.append(step)
        if last:
            if isinstance(holder, list):
                holder[int(step)] = value
            else:
                holder[str(step)] = value
            document.places[tuple(trail)] = where
        elif isinstance(holder, list):
            holder = holder[int(step)]
        else:
            holder = holder.setdefault(str(step), {})
            document.places.setdefault(tuple(trail), where)
