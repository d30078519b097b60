"""Importing this imports what every transformers model needs: for a worker that would idle."""

from __future__ import annotations

from optkit.plugin import need

need("transformers.modeling_utils")
need("transformers.models.auto.modeling_auto")
