"""Mixtures of experts, as Hugging Face writes them, go through torch.export without the kernel no runtime knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralModel

from optkit.formats.torch.experts import batched_experts
from optkit.formats.torch.files import quiet


@pytest.fixture(scope="module")
def mixture() -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, use_cache=False,
                           num_attention_heads=2, num_key_value_heads=2, num_local_experts=4)  # fmt: skip
    return MixtralModel(config).eval()


def operators(module: Any) -> set[str]:
    ids = torch.arange(8).reshape(1, 8)
    with torch.no_grad(), quiet():
        program = torch.export.export(module, (ids,), strict=False)
    return {str(node.target) for node in program.graph.nodes}


def test_experts_are_batched_products_meanwhile_and_as_they_were_afterwards(mixture: Any) -> None:
    ids = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        before = mixture(ids).last_hidden_state
    assert any("grouped_mm" in name for name in operators(mixture))
    with batched_experts(mixture), torch.no_grad():
        assert not any("grouped_mm" in name for name in operators(mixture))
        torch.testing.assert_close(mixture(ids).last_hidden_state, before)
    assert mixture.config._experts_implementation == "grouped_mm"


def test_a_setting_of_the_users_is_left_alone(mixture: Any) -> None:
    mixture.config._experts_implementation = "eager"
    with batched_experts(mixture):
        assert mixture.config._experts_implementation == "eager"
    mixture.config._experts_implementation = "grouped_mm"
