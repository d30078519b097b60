"""How many bytes a model takes on disk, whatever its format: a torch source's lie in files that it only names."""

from __future__ import annotations

import json
from pathlib import Path

from optkit.artifact import Artifact

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def model_bytes(artifact: Artifact) -> int | None:
    """Bytes of all files of a model; of a torch model those of its weights. None where it has no weights on disk."""
    if artifact.format != "torch" or artifact.path.suffix != ".json":
        return artifact.size_bytes
    folder = artifact.path.parent
    own = [folder / name for name in artifact.files if Path(name).suffix in _WEIGHTS]
    found = own or _named(artifact.path)
    return sum(path.stat().st_size for path in found) if found else None


def _named(descriptor: Path) -> list[Path]:
    """The files with weights that a descriptor, torch.json, names."""
    try:
        data = json.loads(descriptor.read_text(encoding="utf-8"))
        place = Path(data.get("weights") or data["path"])
    except (OSError, ValueError, KeyError, TypeError):  # a factory without weights
        return []
    if place.is_dir():
        files = [p for p in place.iterdir() if p.suffix in (".safetensors", ".bin")]
        # A folder may hold the same weights in two forms: transformers prefers the first.
        return [p for p in files if p.suffix == ".safetensors"] or files
    return [place] if place.is_file() else []
