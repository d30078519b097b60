"""What an architecture is here, and the inputs that many of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Build = Callable[[Any], Any]
"""Takes the module `transformers`, gives the model."""

DIMS = {
    "batch": {"min": 1, "opt": 2, "max": 4},
    "sequence": {"min": 4, "opt": 16, "max": 32},
}
"""The range of every named dim; `fixed` says what stands in its place where a target needs it static."""

VOCABULARY = 99
FIRST_TOKEN = 5  # below are the tokens with a meaning (padding, start, end), which some models look for

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A small model of one architecture, with weights drawn under a fixed seed.

    inputs: as a recipe's `inputs:`, in which "batch" and "sequence" are the dims of `DIMS`.
    outputs: those that are compared, by the name transformers gives them.
    """

    name: str
    family: str
    build: Build
    inputs: Mapping[str, Mapping[str, Any]]
    outputs: tuple[str, ...]

    @property
    def dims(self) -> tuple[str, ...]:
        """The dims its inputs have, in order of appearance."""
        named = (axis for spec in self.inputs.values() for axis in spec["shape"] if isinstance(axis, str))
        return tuple(dict.fromkeys(named))


def pixels(side: int, channels: int = 3) -> dict[str, Any]:
    """Images (batch, channel, row, column)."""
    return {"pixel_values": {"shape": ["batch", channels, side, side], "layout": "NCHW", "range": [-2.0, 2.0]}}


def tokens(name: str = "input_ids", vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Token ids (batch, sequence)."""
    return {name: {"shape": ["batch", "sequence"], "dtype": "int64", "range": [FIRST_TOKEN, vocabulary - 1]}}


def mask(name: str = "attention_mask") -> dict[str, Any]:
    """Which tokens count (batch, sequence)."""
    return {name: {"shape": ["batch", "sequence"], "dtype": "int64", "range": [0, 1]}}


def vision(name: str, build: Build, side: int = 32, output: str = "logits") -> Architecture:
    """A model of images alone."""
    return Architecture(name, "vision", build, pixels(side), (output,))


def video(name: str, build: Build) -> Architecture:
    """A classifier of four frames (batch, frame, channel, row, column)."""
    frames = {"pixel_values": {"shape": ["batch", 4, 3, 32, 32], "range": [-2.0, 2.0]}}
    return Architecture(name, "vision", build, frames, ("logits",))


def encoder(name: str, build: Build, *, masked: bool = True, output: str = "last_hidden_state") -> Architecture:
    """An encoder of text."""
    return Architecture(name, "text encoder", build, tokens() | (mask() if masked else {}), (output,))


def decoder(name: str, build: Build) -> Architecture:
    """A language model that reads text from left to right, without a cache of keys and values."""
    return Architecture(name, "decoder", build, tokens() | mask(), ("logits",))


def seq2seq(name: str, build: Build) -> Architecture:
    """An encoder with a decoder, both given whole texts."""
    inputs = tokens() | mask() | {
        "decoder_input_ids": {"shape": ["batch", 8], "dtype": "int64", "range": [FIRST_TOKEN, VOCABULARY - 1]},
    }  # fmt: skip
    return Architecture(name, "encoder-decoder", build, inputs, ("logits",))
