"""Importing this imports what loading and running a torch module takes: for a worker that would idle."""

from __future__ import annotations

from optkit.plugin import need

need("torch")
