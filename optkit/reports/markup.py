"""HTML and SVG elements that escape by construction: what is not an element already goes in as text."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = frozenset({"br", "link", "meta", "wbr"})


class Safe(str):
    """Text that is HTML already; only `tag` and `join` make it."""

    __slots__ = ()


def tag(name: str, /, *inner: object, **attributes: object) -> Safe:
    """An element around `inner`. An attribute that is None or False is left out; `class_` is class, `a_b` is a-b."""
    named = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Safe(f"<{name}{named}>" + ("" if name in _VOID else f"{join(inner)}</{name}>"))


def join(parts: Iterable[object], between: str = "") -> Safe:
    """Elements and texts one after the other; None is left out."""
    return Safe(between.join(part if isinstance(part, Safe) else text(part) for part in parts if part is not None))


def text(value: object) -> Safe:
    """`value` as text: nothing of it is markup; what cannot be seen, or turns the reading direction, is an escape."""
    return Safe(html.escape("".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in str(value))))


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
