"""A Hugging Face folder as a torch source, and folders that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch_kit import (
    ENCODER,
    describe,
    descriptor,
    fails,
)

from optkit.artifact import TensorSpec
from optkit.errors import SourceError
from optkit.formats.torch import model as torch_model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_hugging_face_folder(tmp_path: Path, bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = descriptor(tmp_path, ENCODER, kind="huggingface", path=str(bert))
    assert [str(spec) for spec in describe(path).outputs] == [
        "last_hidden_state: float32[batch, sequence, 8]",
        "pooler_output: float32[batch, 8]",
    ]
    pooled = descriptor(tmp_path, ENCODER, kind="huggingface", path=str(bert), pooling="mean", normalize=True)
    assert [str(spec) for spec in describe(pooled).outputs] == ["embedding: float32[batch, 8]"]
    assert capfd.readouterr() == ("", "")
    cls = torch_model.load(descriptor(tmp_path, ENCODER, kind="huggingface", path=str(bert), pooling="cls"))
    plain = torch_model.load(descriptor(tmp_path, ENCODER, kind="huggingface", path=str(bert)))
    feeds = {"input_ids": torch.ones(2, 5, dtype=torch.int64), "attention_mask": torch.ones(2, 5, dtype=torch.int64)}
    torch.testing.assert_close(cls.call(feeds)["embedding"], plain.call(feeds)["last_hidden_state"][:, 0])


def test_hugging_face_mistakes(tmp_path: Path, bert: Path) -> None:
    def wrong(subject: str, **rest: Any) -> Any:
        return fails(
            SourceError, descriptor(tmp_path, ENCODER, kind="huggingface", **{"path": str(bert), **rest}), subject
        )

    assert "no config.json" in wrong("model", path=str(tmp_path)).what
    assert wrong("model.class", **{"class": "AutoModle"}).hint == "did you mean 'AutoModel'?"
    error = wrong("model.class", **{"class": "AutoModelForSequenceClassification"})
    assert "no weights for 2 parameters" in error.what
    wrong("model.pooling", pooling="max")
    wrong("model.normalize", normalize=True)
    ids = TensorSpec("input_idx", "int64", ("batch", "sequence"))
    path = descriptor(tmp_path, (ids,), kind="huggingface", path=str(bert))
    assert fails(SourceError, path, "inputs.input_idx").hint == "did you mean 'input_ids'?"
