"""Runtime settings as a user writes them, typed by the runner they are for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from optkit.errors import UserError, did_you_mean
from optkit.plugin import Settings
from optkit.registry import get_runner, runners
from optkit.spec.reading import aliases, explain
from optkit.spec.yamlread import Key

CODE = "OPK-215"

Given = Mapping[str, Mapping[str, Any]]
"""Settings by format and name."""


def read_settings(format_: str, given: Mapping[str, Any], title: str) -> tuple[Settings | None, list[Fault]]:
    """The typed settings of a format's runner, and what is wrong with them: (key, what, hint) each."""
    kind = get_runner(format_).settings
    if given and not kind.model_fields:
        return None, [((), f"{title.rstrip('.: ')}: the runner of {format_} has no settings", "leave them out")]
    try:
        return kind.model_validate(dict(given)), []
    except ValidationError as error:
        return None, list(explain(error, dict(given), title, kind))


Fault = tuple[Key, str, str]


def as_json(settings: Settings) -> dict[str, Any]:
    """The settings that were stated, as `Artifact.meta["runtime"]` holds them."""
    return settings.model_dump(mode="json", by_alias=True, exclude_none=True)


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by format, of texts such as "openvino.INFERENCE_PRECISION_HINT=bf16". Raises UserError.

    A runtime goes by its format's name or by that of the package that runs it: onnx or onnxruntime.
    """
    given: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        runtime, dot, setting = name.strip().partition(".")
        if not (sign and dot and setting and value):
            raise UserError(f"--set {text}: this is no setting of a runtime", code=CODE,
                            hint="write it like: --set openvino.INFERENCE_PRECISION_HINT=bf16")  # fmt: skip
        format_ = _format_of(runtime, text)
        if setting in given.setdefault(format_, {}):
            raise UserError(f"--set {text}: {setting} is set twice", hint="keep the one that is meant", code=CODE)
        given[format_][setting] = value.strip()
    return checked(given)


def checked(given: Given) -> dict[str, dict[str, Any]]:
    """Settings by format, typed and back as JSON data. Raises UserError for the first that no runner knows."""
    made = {}
    for format_, settings in given.items():
        typed, faults = read_settings(_format_of(format_, format_), settings, f"{format_}.")
        for _, what, hint in faults:
            raise UserError(what, hint=hint or f"its settings: {', '.join(known(format_))}", code=CODE)
        assert typed is not None
        made[format_] = as_json(typed)
    return made


def known(format_: str) -> list[str]:
    """The names of a format's runtime settings."""
    return aliases(get_runner(format_).settings)


def _format_of(runtime: str, text: str) -> str:
    names = dict(_names())
    if runtime not in names:
        raise UserError(f"{text}: there is no runtime {runtime!r}", hint=did_you_mean(runtime, names), code=CODE)
    return names[runtime]


def _names() -> Iterator[tuple[str, str]]:
    """What a runtime may be called, and its format: the package that runs it, where it runs one format alone."""
    tools: dict[str, list[str]] = {}
    for format_, runner in runners().items():
        for tool in runner.tools[:1]:
            tools.setdefault(tool, []).append(format_)
    yield from ((tool, formats[0]) for tool, formats in tools.items() if len(formats) == 1)
    yield from ((format_, format_) for format_ in runners())


def named(settings: Mapping[str, Any]) -> str:
    """Settings in one line: "INFERENCE_PRECISION_HINT=bf16, NUM_STREAMS=2"."""
    return ", ".join(f"{name}={str(value).lower() if isinstance(value, bool) else value}"
                     for name, value in settings.items())  # fmt: skip


def unused(given: Iterable[str], formats: Iterable[str]) -> list[str]:
    """The formats with settings that nothing is of."""
    there = set(formats)
    return [format_ for format_ in given if format_ not in there]
