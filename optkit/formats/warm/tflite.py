"""Importing this imports LiteRT and the schema of its files: for a worker that would idle."""

from __future__ import annotations

from optkit.plugin import need

need("ai_edge_litert.interpreter", "ai-edge-litert")
need("ai_edge_litert.tools.flatbuffer_utils", "ai-edge-litert")
