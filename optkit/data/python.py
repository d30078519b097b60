"""Samples from a callable of the user's, whose errors are told with the line they came from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from optkit.artifact import Dim, TensorSpec
from optkit.data.source import Row, Source, fault, label_of, sample_hash
from optkit.data.usercode import UserCode
from optkit.errors import did_you_mean
from optkit.spec.dataspec import PythonData, label_names, python_files, split_callable

_END = object()


def open_python(
    spec: PythonData, base: Path, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], name: str
) -> Source:
    """The dicts that the callable's iterable gives. Runs the user's module, and the callable once per pass."""
    code = UserCode(spec.python, python_files(spec, base, name), partial(fault, name))
    function = code.load()
    labels = label_names(spec)
    first: list[str] = []  # the first sample's hash, once a pass has begun

    def call() -> Any:
        with code.running("calling it"):
            made = function(**spec.kwargs)
        if isinstance(made, str | bytes | Mapping) or not (hasattr(made, "__iter__") or hasattr(made, "__getitem__")):
            raise fault(
                name,
                f"{spec.python} returned a {type(made).__name__}, not an iterable of samples",
                "return a list or a generator of dicts, input name to array",
            )
        return made

    def rows() -> Iterator[Row]:
        made = call()
        with code.running("iterating over what it returned"):
            iterator = iter(made)
        for index in itertools.count():
            with code.running(f"making sample {index}"):
                item = next(iterator, _END)
            if item is _END:
                return
            if not isinstance(item, Mapping) or not all(isinstance(key, str) for key in item):
                raise fault(
                    name,
                    f"sample {index} is a {type(item).__name__}, not a dict from input names to arrays",
                    "yield {'input_name': array}",
                )
            sample = dict(item)
            for key in labels:
                if sample.get(key) is None:
                    hint = "-1 where a sample has no class" if key in sample else did_you_mean(key, sample)
                    raise fault(name, f"sample {index} has no label {key!r}", hint)
            found = {key: sample.pop(key) for key in labels}
            if index == 0 and all(isinstance(array, np.ndarray) for array in sample.values()):
                digest = sample_hash(sample).hexdigest()
                if first and first[0] != digest:
                    raise fault(
                        name,
                        f"{spec.python} gives another first sample each time it is called",
                        "seed its random generator, and sort the files it reads",
                    )
                first[:] = [digest]
            yield sample, label_of(spec.label, found)

    def count() -> int:
        made = call()
        if hasattr(made, "__len__"):
            with code.running("taking its length"):
                return len(made)
        return sum(1 for _ in itertools.islice(rows(), spec.limit))

    return Source(
        rows,
        count,
        bool(labels),
        {"kind": "python", "callable": split_callable(spec.python)[1], "kwargs": spec.kwargs},
    )
