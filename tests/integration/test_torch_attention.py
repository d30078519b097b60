"""nn.MultiheadAttention written out: the same answers in every way it can be called, and heads that can go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import prune_zoo as zoo
import pytest
import torch
from prune_kit import answers, at_rest, feeds_of, module_of, pruned
from torch import Tensor, nn
from torch_kit import descriptor

from optkit.artifact import TensorSpec
from optkit.errors import SourceError
from optkit.formats.torch import attention as torch_attention

ZOO = Path(zoo.__file__)
IDS = TensorSpec("ids", "int64", ("batch", "sequence"), None, (0, 63))
MASK = TensorSpec("mask", "int64", ("batch", "sequence"), None, (0, 1))


def called(attention: Any, x: Tensor, other: Tensor, **rest: Any) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in attention(x, other, other, **rest) if t is not None]


@pytest.mark.parametrize("built", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 10}], ids=str)
@pytest.mark.parametrize("rest", [{}, {"need_weights": False}, {"average_attn_weights": False}], ids=str)
@pytest.mark.parametrize("masked", ["", "padding", "causal", "both", "numbers"])
def test_written_out_it_answers_the_same(built: dict[str, Any], rest: dict[str, Any], masked: str) -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(nn.MultiheadAttention(16, 4, dropout=0.5, **built)).eval()
    x, key, value = torch.randn(3, 5, 16), torch.randn(3, 7, built.get("kdim", 16)), torch.randn(3, 7, 16)
    value = torch.randn(3, 7, built.get("vdim", 16))
    if not built.get("batch_first"):
        x, key, value = (t.transpose(0, 1) for t in (x, key, value))
    masks: dict[str, Any] = {}
    if masked in ("padding", "both"):
        masks["key_padding_mask"] = torch.arange(7)[None] >= torch.tensor([[7], [4], [2]])
    if masked in ("causal", "both"):
        masks["attn_mask"] = torch.ones(5, 7, dtype=torch.bool).triu(3)
    if masked == "numbers":
        masks["attn_mask"] = torch.randn(3 * 4, 5, 7)

    def call() -> list[Tensor]:
        with torch.no_grad():
            return [t for t in holder[0](x, key, value, **masks, **rest) if t is not None]

    wanted = call()
    torch_attention.replace(holder, ["0"])
    assert not isinstance(holder[0], nn.MultiheadAttention)
    torch.testing.assert_close(call(), wanted, rtol=1e-5, atol=1e-6)


def test_a_sentence_without_a_batch() -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(nn.MultiheadAttention(16, 4)).eval()
    x, mask = torch.randn(5, 16), torch.tensor([False, False, True, False, True])
    wanted = called(holder[0], x, x, key_padding_mask=mask)
    torch_attention.replace(holder, ["0"])
    torch.testing.assert_close(called(holder[0], x, x, key_padding_mask=mask), wanted, rtol=1e-5, atol=1e-6)


def test_what_is_more_than_attention_stays() -> None:
    hooked, plain = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)
    hooked.register_forward_hook(lambda *_: None)
    tied = nn.MultiheadAttention(8, 2)
    tied.in_proj_weight = (other := nn.MultiheadAttention(8, 2)).in_proj_weight

    class Own(nn.MultiheadAttention):
        """A forward of its own."""

    module = nn.ModuleList([plain, nn.MultiheadAttention(8, 2, add_bias_kv=True), Own(8, 2), hooked, tied, other,
                            nn.MultiheadAttention(8, 2, add_zero_attn=True)])  # fmt: skip
    assert torch_attention.able(module) == ["0"]


def test_code_that_looks_inside_gets_its_module_back() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.attention.in_proj_weight.T

    module = Looks().eval()
    before = module.attention
    assert torch_attention.write_out(module, lambda: {"y": module(torch.randn(2, 8))}) == []
    assert module.attention is before


def test_heads_and_width_of_torchs_own_transformer_go(tmp_path: Path) -> None:
    spec = descriptor(tmp_path, [IDS, MASK], f"{ZOO}:Translator", ["scores"])
    artifact = at_rest(spec)
    made, notes = pruned(tmp_path, artifact, ratio=0.5, scope="layer")
    encoder, decoder = module_of(made).encoder.layers[0], module_of(made).decoder.layers[0]
    for attention in (encoder.self_attn, decoder.self_attn, decoder.multihead_attn):
        assert tuple(attention.q_proj.weight.shape) == (16, 16)  # two of four heads, half of the width
    assert notes["left"] == [{"layer": "head", "why": "it is an output of the model"}]
    feeds = feeds_of(artifact)
    feeds["mask"] = (torch.arange(6)[None] < torch.tensor([[6], [4], [2]])).long()  # padding, as it comes
    assert answers(made, feeds)["scores"].isfinite().all()


def test_heads_that_give_nothing_go_without_a_trace(tmp_path: Path) -> None:
    module = zoo.Translator()
    for layer in (*module.encoder.layers, *module.decoder.layers):
        for attention in (layer.self_attn, getattr(layer, "multihead_attn", layer.self_attn)):
            attention.in_proj_weight.data.view(3, 32, 32)[:, 8:24] = 0  # the middle two of four heads
    weights = tmp_path / "weights.pt"
    torch.save(module.state_dict(), weights)
    artifact = at_rest(descriptor(tmp_path, [IDS, MASK], f"{ZOO}:Translator", ["scores"], weights=str(weights)))
    made, _ = pruned(tmp_path, artifact, ratio=0.5, scope="layer", keep=["embed", "*.linear*", "*norm*"])
    assert module_of(made).encoder.layers[0].self_attn.v_proj.weight.shape[0] == 16
    feeds = feeds_of(artifact)
    torch.testing.assert_close(answers(made, feeds), answers(artifact, feeds), rtol=1e-4, atol=1e-5)


def test_a_model_without_the_attention_is_refused() -> None:
    with pytest.raises(SourceError, match="built otherwise than when it was pruned: attention is no"):
        torch_attention.replace(nn.Sequential(nn.Linear(2, 2)), ["attention"])
