"""Importing this imports ai-edge-quantizer: for a worker that would idle."""

from __future__ import annotations

from optkit.plugin import need

need("ai_edge_quantizer.quantizer", "ai-edge-quantizer")
