"""Metrics over text: word error rate and perplexity."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from optkit.scoring.base import Array, Batch, Plain, Unfit, class_ids, label_of, output_of, rows_of, weighted
from optkit.spec.dataspec import resolve_path
from optkit.spec.metricspec import PerplexityOptions, WerOptions


def edits(reference: Sequence[Hashable], found: Sequence[Hashable]) -> int:
    """Fewest insertions, deletions and substitutions from one to the other (Levenshtein, 1966)."""
    row = list(range(len(found) + 1))
    for number, word in enumerate(reference, 1):
        last, row[0] = row[0], number
        for column, other in enumerate(found, 1):
            last, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, last + (word != other))
    return row[-1]


class WordErrors(Plain):
    """wer: of each sample the edits, and the words of its reference."""

    def __init__(self, options: WerOptions, base: Path) -> None:
        self.options = options
        self.tokens = _vocabulary(resolve_path(options.vocabulary, base)) if options.vocabulary else None
        self.edits: list[int] = []
        self.words: list[int] = []

    def add(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        name, array = output_of(outputs, self.options.output)
        for row, found in enumerate(rows_of(name, array, batch.count)):
            label = label_of(batch, row, self.options.target)
            reference = self._units(label if isinstance(label, str) else np.asarray(label), batch.start + row)
            predicted = self._units(self._decode(name, found), batch.start + row)
            self.edits.append(edits(reference, predicted))
            self.words.append(len(reference))

    def _decode(self, name: str, found: Array) -> str | Array:
        if self.options.decode == "text":
            if found.dtype.kind not in "USO":
                hint = "decode: ids, or ctc for an acoustic model's frames"
                raise Unfit(f"output {name!r} is {found.dtype}, not text", hint)
            return " ".join(str(item) for item in found.ravel())
        if found.dtype.kind == "f" and found.ndim == 2:
            found = found.argmax(-1)
        if found.dtype.kind not in "iu" or found.ndim != 1:
            raise Unfit(
                f"output {name!r} has {found.dtype} of shape {found.shape} per sample, neither token ids (tokens,) nor "
                "scores (tokens, vocabulary)",
                "name another output:",
            )
        if self.options.decode == "ctc":
            kept = np.ones(len(found), bool)
            kept[1:] = found[1:] != found[:-1]
            found = found[kept & (found != self.options.blank)]
        return found

    def _units(self, text: str | Array, sample: int) -> list[Hashable]:
        if not isinstance(text, str):
            if text.dtype.kind in "US" and text.ndim == 0:
                text = str(text)
            elif text.dtype.kind not in "iu":
                raise Unfit(
                    f"sample {sample}: its label is {text.dtype}, neither text nor token ids", "save it as text"
                )
        if not isinstance(text, str):
            ids = [int(i) for i in text.ravel() if i >= 0 and int(i) not in self.options.drop]
            if self.tokens is None:
                return list(ids)
            if missing := next((i for i in ids if i not in self.tokens), None):
                raise Unfit(f"sample {sample}: the vocabulary has no token {missing}", "correct vocabulary:")
            text = "".join(self.tokens[i] for i in ids).replace(self.options.separator, " ")
        elif self.tokens is None and self.options.decode != "text":
            raise Unfit(f"sample {sample}: its label is text, the predictions are token ids", "add vocabulary: FILE")
        words = text.split()
        return list(words) if self.options.unit == "word" else list(" ".join(words))

    def values(self, weights: Array) -> Array:
        return weighted(weights, np.array(self.edits), np.array(self.words))


def _vocabulary(path: Path) -> dict[int, str]:
    """Tokens by id."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return dict(enumerate(text.splitlines()))
        return {int(number): str(token) for token, number in json.loads(text).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        hint = 'a .json like {"a": 0, "b": 1}, or a .txt with one token per line'
        raise Unfit(f"{path.name} is no vocabulary: {error}", hint) from error


class LogLikelihood(Plain):
    """perplexity: of each sample the negative log-likelihood of its tokens in nats, and their number."""

    def __init__(self, options: PerplexityOptions) -> None:
        self.options = options
        self.nats: list[Array] = []
        self.tokens: list[Array] = []

    def add(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        name, array = output_of(outputs, self.options.output)
        logits = rows_of(name, array, batch.count)
        if logits.ndim != 3 or logits.dtype.kind != "f":
            raise Unfit(
                f"output {name!r} has {logits.dtype} of shape {logits.shape}, not scores (batch, tokens, vocabulary)",
                "name the output of scores with output:",
            )
        ids = self._ids(batch)
        if ids.shape != logits.shape[:2]:
            raise Unfit(
                f"output {name!r} scores {logits.shape[1:2]} tokens, there are {ids.shape[1:]}",
                "the output's second axis counts the tokens that were fed",
            )
        if self.options.target is None:
            logits, ids = logits[:, :-1], ids[:, 1:]
        known = ids >= 0
        if known.any() and ids.max() >= logits.shape[-1]:
            what = f"token {int(ids.max())} is outside the vocabulary of {logits.shape[-1]} that output {name!r} scores"
            raise Unfit(what, "leave it out with ignore:")
        nats = np.zeros(batch.count)
        for row in range(batch.count):  # one sample at a time: a vocabulary is large
            scores = logits[row][known[row]].astype(np.float64)
            own = np.take_along_axis(scores, ids[row][known[row]][:, None], -1)[:, 0]
            top = scores.max(-1, keepdims=True, initial=-np.inf)
            nats[row] = (top[:, 0] + np.log(np.exp(scores - top).sum(-1)) - own).sum()
        self.nats.append(nats)
        self.tokens.append(known.sum(1))

    def _ids(self, batch: Batch) -> Array:
        """The token ids to predict, `(count, tokens)`; -1 where none is."""
        options = self.options
        if options.target is None:
            if options.tokens not in batch.feeds:
                raise Unfit(f"the model has no input {options.tokens!r}", "name the tokens' input with tokens:")
            ids = np.array(batch.feeds[options.tokens][: batch.count], np.int64)
        else:
            ids = class_ids(batch, options.target).copy()
        mask = options.mask or ("attention_mask" if "attention_mask" in batch.feeds else None)
        if mask is not None:
            if mask not in batch.feeds:
                raise Unfit(f"the model has no input {mask!r}", "name another with mask:")
            ids[np.asarray(batch.feeds[mask][: batch.count]) == 0] = -1
        if options.ignore is not None:
            ids[ids == options.ignore] = -1
        return ids

    def values(self, weights: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.exp(weighted(weights, np.concatenate(self.nats), np.concatenate(self.tokens)))
