"""Pieces of YAML, written by hand so that comments can stand among them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def relocated(text: str, folder: Path) -> str:
    """A path, or FILE.py:NAME, that starts from the working directory, as it reads from `folder`."""
    place, colon, name = text.rpartition(":")
    if colon and place.endswith(".py"):
        return f"{relocated(place, folder)}:{name}"
    path = Path(text)
    if not path.exists() or path.is_absolute():
        return text  # a module's name, or a place that is the same from everywhere
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def flow(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(v) for v in value) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """A YAML scalar that reads back as `value`, quoted where it must be."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str):
        return json.dumps(value)
    import yaml

    try:
        plain = re.fullmatch(r"[A-Za-z0-9_./\\ :@+-]+", value) and yaml.safe_load(f"[{value}]") == [value]
    except yaml.YAMLError:
        plain = False
    return value if plain else quoted(value)


def quoted(text: str) -> str:
    """A double-quoted YAML scalar. Unlike JSON's, its escapes reach past U+FFFF, and it holds what can be printed."""
    escapes = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(escapes.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'


def with_note(text: str, note: str) -> str:
    """A line with a comment behind it, where there is one."""
    return f"{text}  # {plain(note)}" if note else text


def plain(text: str) -> str:
    """`text` as it may stand in a comment: on one line."""
    return "".join(c if c.isprintable() else "?" for c in text)
