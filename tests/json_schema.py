"""A validator of JSON Schema, of the keywords that optkit's schemas use, written by the specification."""

from __future__ import annotations

import re
from typing import Any


def valid(value: Any, schema: Any, root: dict[str, Any]) -> bool:
    """Whether a value meets a schema, by the keywords of draft 2020-12 that recipe_schema uses, and no others."""
    if isinstance(schema, bool):
        return schema
    checks = {
        key: rule for key, rule in schema.items() if key not in ("description", "default", "title", "$defs", "$schema")
    }
    unknown = set(checks) - set(_KEYWORDS) - {"then", "else"}
    assert not unknown, f"the test knows no {unknown}"
    return all(_KEYWORDS[key](value, rule, schema, root) for key, rule in checks.items() if key in _KEYWORDS)


def _is(value: Any, kind: str | list[str]) -> bool:
    if isinstance(kind, list):
        return any(_is(value, k) for k in kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"object": isinstance(value, dict), "array": isinstance(value, list), "string": isinstance(value, str),
            "null": value is None, "boolean": isinstance(value, bool), "number": number,
            "integer": number and float(value).is_integer()}[kind]  # fmt: skip


def _properties(value: Any, rule: Any, schema: Any, root: dict[str, Any]) -> bool:
    return not isinstance(value, dict) or all(valid(value[k], s, root) for k, s in rule.items() if k in value)


def _additional(value: Any, rule: Any, schema: Any, root: dict[str, Any]) -> bool:
    named = schema.get("properties", {})
    return not isinstance(value, dict) or all(valid(v, rule, root) for k, v in value.items() if k not in named)


def _if(value: Any, rule: Any, schema: Any, root: dict[str, Any]) -> bool:
    branch = schema.get("then" if valid(value, rule, root) else "else", True)
    return valid(value, branch, root)


def _equal(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


_KEYWORDS: dict[str, Any] = {
    "$ref": lambda v, r, s, root: valid(v, root["$defs"][r.removeprefix("#/$defs/")], root),
    "type": lambda v, r, s, root: _is(v, r),
    "const": lambda v, r, s, root: _equal(v, r),
    "enum": lambda v, r, s, root: any(_equal(v, item) for item in r),
    "pattern": lambda v, r, s, root: not isinstance(v, str) or re.search(r, v) is not None,
    "required": lambda v, r, s, root: not isinstance(v, dict) or set(r) <= set(v),
    "properties": _properties,
    "additionalProperties": _additional,
    "maxProperties": lambda v, r, s, root: not isinstance(v, dict) or len(v) <= r,
    "items": lambda v, r, s, root: not isinstance(v, list) or all(
        valid(item, r, root) for item in v[len(s.get("prefixItems", [])):]),
    "prefixItems": lambda v, r, s, root: not isinstance(v, list) or all(valid(i, x, root) for i, x in zip(v, r)),  # noqa: B905
    "minItems": lambda v, r, s, root: not isinstance(v, list) or len(v) >= r,
    "maxItems": lambda v, r, s, root: not isinstance(v, list) or len(v) <= r,
    "uniqueItems": lambda v, r, s, root: not r or not isinstance(v, list) or len({str(i) for i in v}) == len(v),
    "minLength": lambda v, r, s, root: not isinstance(v, str) or len(v) >= r,
    "minimum": lambda v, r, s, root: not _is(v, "number") or v >= r,
    "maximum": lambda v, r, s, root: not _is(v, "number") or v <= r,
    "exclusiveMinimum": lambda v, r, s, root: not _is(v, "number") or v > r,
    "exclusiveMaximum": lambda v, r, s, root: not _is(v, "number") or v < r,
    "allOf": lambda v, r, s, root: all(valid(v, x, root) for x in r),
    "anyOf": lambda v, r, s, root: any(valid(v, x, root) for x in r),
    "oneOf": lambda v, r, s, root: sum(valid(v, x, root) for x in r) == 1,
    "not": lambda v, r, s, root: not valid(v, r, root),
    "if": _if,
}  # fmt: skip
