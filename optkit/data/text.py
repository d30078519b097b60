"""Samples from texts, one JSON object per line, tokenised one at a time with the `tokenizers` package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optkit.artifact import Dim, TensorSpec, digest_file
from optkit.data.check import check_names
from optkit.data.source import Pad, Row, Sample, Source, fault, label_of, pad_to
from optkit.errors import did_you_mean
from optkit.plugin import need
from optkit.spec.dataspec import TextData, existing, label_names, resolve_path, tokenizer_file

PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")
"""Looked for, in this order, in a tokenizer that does not state its padding."""

TENSORS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Model input to the attribute of a `tokenizers.Encoding`."""


def open_text(spec: TextData, base: Path, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], name: str) -> Source:
    """Token arrays `(tokens,)` of natural length, at most `max_length`, special tokens included.

    Padding (in `finish` and in feeds) has the tokenizer's pad id, type id 0 or as it states, and mask 0. A text
    shorter than the smallest size of its dim is padded up to that.
    """
    path = existing(resolve_path(spec.jsonl, base), name)
    if {i.name for i in inputs} - set(TENSORS):
        check_names(
            name,
            TENSORS,
            inputs,
            "a tokenised text",
            lack_hint=f"name the model's inputs {', '.join(TENSORS)}, or make the samples with python:",
        )
    keys = (spec.text,) if isinstance(spec.text, str) else spec.text
    file = tokenizer_file(spec, base, name)
    tokenizer, padding = _tokenizer(file, spec, len(keys) == 2, name)
    pad_id, type_id, side = padding
    values = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": type_id}
    pads = {i.name: Pad(values[i.name], "left" if side == "left" else "right") for i in inputs}
    least = {i.name: _least(i, dims, spec, name) for i in inputs}
    labels = label_names(spec)
    dtypes = {i.name: i.dtype if i.dtype in ("int32", "int64") else "int64" for i in inputs}

    def rows() -> Iterator[Row]:
        for number, text in _lines(path, name):
            record = _record(text, number, path, name)
            parts = [_field(record, key, number, path, name) for key in keys]
            for key, part in zip(keys, parts, strict=True):
                if not isinstance(part, str):
                    raise fault(
                        name,
                        f"{path.name}, line {number}: {key!r} is no text but {part!r}",
                        "every line needs a string there",
                    )
            encoding = tokenizer.encode(*parts)
            sample = {key: np.array(getattr(encoding, TENSORS[key]), dtype) for key, dtype in dtypes.items()}
            found = {key: _field(record, key, number, path, name) for key in labels}
            for key, label in found.items():
                if not isinstance(label, str | int | float | list):
                    raise fault(
                        name,
                        f"{path.name}, line {number}: label {key!r} is {label!r}",
                        "a label is a number, a string or a list",
                    )
            yield sample, label_of(spec.label, found)

    def finish(sample: Sample) -> Sample:
        return {key: pad_to(name, array, (max(least[key], len(array)),), pads[key]) for key, array in sample.items()}

    count = sum(1 for _ in _lines(path, name))
    if count == 0:
        raise fault(name, f"{path.name} has no lines", "write one JSON object per line")
    preprocessing = {
        "kind": "text", "tokenizer_sha256": digest_file(file), "text": spec.text if len(keys) == 1 else list(keys),
        "max_length": spec.max_length, "padding": spec.padding, "pad_id": pad_id, "pad_side": side,
    }  # fmt: skip
    return Source(rows, lambda: count, bool(labels), preprocessing, pads, finish)


def _least(spec: TensorSpec, dims: Mapping[str, Dim], data: TextData, name: str) -> int:
    """The length every text is padded to. Raises DataError when a fixed length is not what the recipe makes."""
    axis = spec.shape[-1] if spec.shape else None
    if isinstance(axis, int) and (data.padding != "max_length" or data.max_length != axis):
        raise fault(
            name,
            f"input {spec.name!r} takes exactly {axis} tokens; max_length is {data.max_length}, padding {data.padding}",
            f"set padding: max_length and max_length: {axis}",
        )
    smallest = dims[axis].min if isinstance(axis, str) and axis in dims else 1
    return max(smallest, data.max_length if data.padding == "max_length" else 1)


def _tokenizer(file: Path, spec: TextData, pair: bool, name: str) -> tuple[Any, tuple[int | None, int, str]]:
    """The tokenizer, cutting at max_length and never padding, and its pad id, pad type id and side.

    What the file says on truncation is overridden but for the end that is cut.
    """
    tokenizers = need("tokenizers")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain Exception
        raise fault(
            name,
            f"{file.name} is no tokenizer: {error}",
            "save it with save_pretrained() of a fast tokenizer, or Tokenizer.save()",
        ) from error
    own, cut = tokenizer.padding, tokenizer.truncation or {}
    tokenizer.no_padding()
    special = tokenizer.num_special_tokens_to_add(pair)
    if spec.max_length <= special:
        raise fault(
            name,
            f"max_length {spec.max_length} leaves no room beside {special} special tokens",
            f"raise max_length to more than {special}",
        )
    tokenizer.enable_truncation(spec.max_length, direction=cut.get("direction", "right"))
    if spec.pad_token is not None and tokenizer.token_to_id(spec.pad_token) is None:
        raise fault(name, f"the tokenizer has no token {spec.pad_token!r}", "pad_token: one of its vocabulary")
    ids = [tokenizer.token_to_id(token) for token in ((spec.pad_token,) if spec.pad_token else PAD_TOKENS)]
    found = next((number for number in ids if number is not None), None)
    if own:
        return tokenizer, (found if spec.pad_token else own["pad_id"], own["pad_type_id"], own["direction"])
    return tokenizer, (found, 0, "right")


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and lines that are not blank."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield number, line
        except UnicodeDecodeError as error:
            raise fault(name, f"{path.name} is not UTF-8: {error.reason}", "save it as UTF-8") from error


def _record(text: str, number: int, path: Path, name: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise fault(
            name, f"{path.name}, line {number}, column {error.colno}: {error.msg}", "write one JSON object per line"
        ) from error
    if not isinstance(record, dict):
        raise fault(
            name,
            f"{path.name}, line {number}: no JSON object but {type(record).__name__}",
            'write one JSON object per line, such as {"text": "..."}',
        )
    return record


def _field(record: dict[str, Any], key: str, number: int, path: Path, name: str) -> Any:
    if key not in record:
        raise fault(name, f"{path.name}, line {number}: there is no key {key!r}", did_you_mean(key, record))
    return record[key]
