"""What several steps need, made once: kept in the cache under what decides it, whichever step or run comes first."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.artifact import digest_of
from optkit.cache import Cache, Entry, lock_folder, unlock_folder

_WAIT_SECONDS = 0.1


class Shared:
    """`Context.shared` of a step. given: the cache's root, and the key of what the step's data and tools decide."""

    def __init__(self, given: Mapping[str, str], say: Callable[[str, float | None], None]) -> None:
        self._given, self._say = given, say
        self._cache: Cache | None = None

    def __call__(self, what: Sequence[Any], make: Callable[[Path], None]) -> Path:
        """The folder that `make` filled, now or in another step; a step that is making it is waited for."""
        cache = self._cache = self._cache or Cache(Path(self._given["root"]))
        key = digest_of(["shared", self._given["key"], *what])
        while (entry := cache.get(key)) is None:
            try:
                lock = lock_folder(cache.partial(key))
            except FileNotFoundError:  # whoever had it has just finished
                continue
            if lock is None:
                self._say("waiting for another step that looks at the same data", None)
                time.sleep(_WAIT_SECONDS)
                continue
            try:
                entry = cache.get(key) or self._made(cache, key, make)
                cache.drop_partial(key)
            finally:
                unlock_folder(lock)
        return entry.folder

    def _made(self, cache: Cache, key: str, make: Callable[[Path], None]) -> Entry:
        staged = cache.stage()
        try:
            make(staged)
            return cache.put(key, {}, staged)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
