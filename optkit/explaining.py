"""What the code of an error means: read from `explanations.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from optkit.errors import UserError, did_you_mean

_FILE = Path(__file__).with_name("explanations.toml")


@dataclass(frozen=True)
class Explanation:
    """title: the situation in a few words. meaning: what optkit met. why: why it refuses. do: what mends it."""

    code: str
    title: str
    meaning: str
    why: str
    do: str


@cache
def explanations() -> Mapping[str, Explanation]:
    """Every code with its explanation, in order of codes."""
    data = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return {code: Explanation(code, **{k: v.strip() for k, v in data[code].items()}) for code in sorted(data)}


def explain(code: str) -> Explanation:
    """What a code means; case and the prefix may be left out ("231"). Raises UserError with the nearest code."""
    known = explanations()
    wanted = code.strip().strip("[]").upper()
    if wanted.isdigit():
        wanted = f"OPK-{wanted}"
    if wanted not in known:
        raise UserError(f"no error has the code {code!r}", hint=did_you_mean(wanted, known), code="OPK-202")
    return known[wanted]
