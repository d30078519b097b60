"""A Hugging Face model folder as an nn.Module, with pooling where a sentence encoder is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optkit.errors import SourceError, did_you_mean
from optkit.plugin import need


def from_folder(descriptor: Mapping[str, Any]) -> tuple[Any, Callable[..., Any]]:
    """The folder's model in float32, from local files alone, and the forward whose parameters are its inputs.

    With pooling it gives one "embedding" per row. Raises SourceError.
    """
    need("torch")
    folder = Path(descriptor["path"])
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{folder} has no config.json, so it is no Hugging Face model folder",
            subject="model",
            hint="give the folder that save_pretrained wrote",
        )
    transformers = need("transformers")
    pooling, normalize = descriptor.get("pooling"), bool(descriptor.get("normalize"))
    if pooling not in {None, "mean", "cls"}:
        raise SourceError(f"unknown pooling {pooling!r}", subject="model.pooling", hint="mean, cls or none")
    if normalize and pooling is None:
        raise SourceError("normalize needs pooling", subject="model.normalize", hint="pooling: mean")
    name = descriptor.get("class")
    if name is None:
        listed = json.loads((folder / "config.json").read_text()).get("architectures") or ["AutoModel"]
        name = listed[0] if hasattr(transformers, listed[0]) else "AutoModel"
    cls = getattr(transformers, str(name), None)
    if cls is None or not hasattr(cls, "from_pretrained"):
        known = [n for n in dir(transformers) if n.startswith("AutoModel")]
        raise SourceError(
            f"transformers has no model class {name!r}", subject="model.class", hint=did_you_mean(str(name), known)
        )
    model, report = _from_pretrained(transformers, cls, folder)
    lacking = [k for k in report["missing_keys"] if not (pooling and "pooler." in k)] + list(report["mismatched_keys"])
    if lacking:
        raise SourceError(
            f"{folder} has no weights for {len(lacking)} parameters of {name}, first {lacking[0]}: they would "
            "be random",
            subject="model.class",
            hint="name the class the folder was saved from",
        )
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    if pooling is None:
        return model, model.forward
    return _pooled(model, pooling, normalize), model.forward


def _from_pretrained(transformers: Any, cls: Any, folder: Path) -> tuple[Any, Mapping[str, Any]]:
    torch, logging = need("torch"), transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded: tuple[Any, Mapping[str, Any]] = cls.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        return loaded
    except Exception as error:  # a folder can be wrong in any way: config, shards, tokens
        raise SourceError(
            f"{cls.__name__} cannot load {folder}: {type(error).__name__}: {error}",
            subject="model",
            hint="name the class the folder was saved from (model.class)",
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _pooled(model: Any, pooling: str, normalize: bool) -> Any:
    """`model` with its hidden states (batch, sequence, hidden) pooled to "embedding" (batch, hidden).

    As sentence-transformers has it: the mean weighs by the attention mask and divides by at least 1e-9; normalising
    divides by the L2 norm.
    """
    torch = need("torch")

    class Pooled(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, **inputs: Any) -> dict[str, Any]:
            hidden = self.encoder(**inputs).last_hidden_state
            if pooling == "cls":
                embedding = hidden[:, 0]
            else:
                mask = inputs.get("attention_mask")
                weight = torch.ones_like(hidden[..., :1]) if mask is None else mask.unsqueeze(-1).to(hidden.dtype)
                embedding = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return {"embedding": torch.nn.functional.normalize(embedding, p=2, dim=1) if normalize else embedding}

    return Pooled()
