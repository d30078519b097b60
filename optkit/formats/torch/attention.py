"""nn.MultiheadAttention written out: three linear layers, the attention between them, and a fourth.

torch computes all of an nn.MultiheadAttention in one call that takes as many numbers per head as the embedding has over
the heads, so that no head can be taken from it. Written out, heads are what the three layers give, and any of them can
go; and each of the four layers can be rounded by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optkit.errors import SourceError
from optkit.plugin import need

SAME = 1e-4
"""The part by which a model may answer otherwise with its attention written out: another order of float32 sums."""


def write_out(module: Any, call: Callable[[], Mapping[str, Any]]) -> list[str]:
    """Write out every nn.MultiheadAttention of a module, in place, and give their paths.

    call: runs the module on examples, giving tensors by name. Where it answers otherwise afterwards, or not at all, the
    module is put back as it was, and there are no paths.
    """
    paths = able(module)
    if not paths:
        return []
    old = {path: module.get_submodule(path) for path in paths}
    nested = _nesting(module)
    wanted = call()
    replace(module, paths)
    try:
        same = _same(wanted, call())
    except Exception:  # the user's own code, which reads what is no longer there
        same = False
    if not same:
        _put(module, {id(module.get_submodule(path)): attention for path, attention in old.items()})
        for encoder in nested:
            encoder.use_nested_tensor = True
    return paths if same else []


def able(module: Any) -> list[str]:
    """The paths of the attentions that can be written out: torch's own class, without what is added to its keys."""
    torch = need("torch")
    kind = torch.nn.MultiheadAttention
    uses = Counter(id(p) for part in module.modules() for p in part._parameters.values() if p is not None)
    found = []
    for path, part in module.named_modules():
        if path and type(part) is kind and part.bias_k is None and not part.add_zero_attn:
            hooked = part._forward_hooks or part._forward_pre_hooks
            shared = any(uses[id(p)] > 1 for p in part._parameters.values() if p is not None)
            if not hooked and not shared:
                found.append(path)
    return found


def replace(module: Any, paths: Iterable[str]) -> None:
    """Write out the attentions at these paths, in place. Raises SourceError where one is not there."""
    torch = need("torch")
    made: dict[int, Any] = {}
    for path in paths:
        try:
            part = module.get_submodule(path)
        except AttributeError:
            part = None
        if type(part) is not torch.nn.MultiheadAttention:
            raise SourceError(
                f"the model was built otherwise than when it was pruned: {path} is no nn.MultiheadAttention",
                subject="model.torch",
                hint="build it with the code and the kwargs it was pruned with, or prune it again",
            )
        made[id(part)] = _written_out(part)
    _put(module, made)
    for encoder in _nesting(module) if made else ():
        encoder.use_nested_tensor = False  # else it packs sentences for a kernel that computes a whole layer


def _nesting(module: Any) -> list[Any]:
    """torch's encoders that leave out padding by packing it away."""
    kind = need("torch").nn.TransformerEncoder
    return [part for part in module.modules() if isinstance(part, kind) and getattr(part, "use_nested_tensor", False)]


def _put(module: Any, made: Mapping[int, Any]) -> None:
    """Put modules in the place of others, given by their ids, wherever those are."""
    for owner in list(module.modules()):
        for name, child in list(owner._modules.items()):
            if id(child) in made:
                owner._modules[name] = made[id(child)]


def _same(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    torch = need("torch")
    for name, tensor in wanted.items():
        other = found[name]
        if tensor.shape != other.shape or not torch.equal(tensor.isfinite(), other.isfinite()):
            return False
        a, b = (t.double()[tensor.isfinite()] for t in (tensor, other))
        if not float((a - b).norm()) <= SAME * float(a.norm()) + 1e-30:
            return False
    return True


def _written_out(attention: Any) -> Any:
    torch = need("torch")
    functional = torch.nn.functional

    class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
        """Called as nn.MultiheadAttention is, with the same result."""

        def __init__(self, attention: Any) -> None:
            super().__init__()
            self.head_dim, self.dropout = attention.head_dim, attention.dropout
            self.num_heads, self.batch_first = attention.num_heads, attention.batch_first
            # torch's encoder layers look at these: with them they call this module, and no kernel of their own.
            self.in_proj_weight = self.in_proj_bias = None
            self._qkv_same_embed_dim = False
            self.q_proj, self.k_proj, self.v_proj = (
                _linear(weight, bias) for weight, bias in zip(*_projections(attention), strict=True)
            )
            self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
            self.train(attention.training)

        def forward(
            self, query: Any, key: Any, value: Any, key_padding_mask: Any = None, need_weights: bool = True,
            attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
        ) -> tuple[Any, Any]:  # fmt: skip
            if is_causal and attn_mask is None:
                raise RuntimeError("is_causal says what attn_mask is: give the mask too")
            batched = query.dim() == 3
            if not batched:
                query, key, value = (t.unsqueeze(0) for t in (query, key, value))
                key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
            elif not self.batch_first:
                query, key, value = (t.transpose(0, 1) for t in (query, key, value))
            q, k, v = (self._heads(t) for t in (self.q_proj(query), self.k_proj(key), self.v_proj(value)))
            mask = self._mask(attn_mask, key_padding_mask, q)
            dropout = self.dropout if self.training else 0.0
            weights = None
            if need_weights:
                products = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
                weights = functional.softmax(products if mask is None else products + mask, -1)
                weights = functional.dropout(weights, dropout) if dropout else weights
                given = weights @ v
                weights = weights.mean(1) if average_attn_weights else weights
            else:
                given = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
            given = self.out_proj(given.transpose(1, 2).flatten(2))
            if not batched:
                return given.squeeze(0), None if weights is None else weights.squeeze(0)
            return given if self.batch_first else given.transpose(0, 1), weights

        def _heads(self, tensor: Any) -> Any:
            """(batch, position, width) to (batch, head, position, head_dim)."""
            return tensor.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        def _mask(self, attn_mask: Any, key_padding_mask: Any, q: Any) -> Any:
            """What is added to the products, of shape (1 or batch, 1 or head, 1 or position, position)."""
            whole = None
            if attn_mask is not None:
                whole = _added(attn_mask, q.dtype)
                whole = whole.unflatten(0, (q.shape[0], -1)) if whole.dim() == 3 else whole[None, None]
            if key_padding_mask is not None:
                padding = _added(key_padding_mask, q.dtype)[:, None, None]
                whole = padding if whole is None else whole + padding
            return whole

    return Attention(attention)


def _added(mask: Any, dtype: Any) -> Any:
    """A mask as numbers to add; in one of booleans, true is what is masked."""
    torch = need("torch")
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def _projections(attention: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """The weights and biases of queries, keys and values."""
    weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    bias = attention.in_proj_bias
    return weights, (None,) * 3 if bias is None else bias.chunk(3)


def _linear(weight: Any, bias: Any) -> Any:
    torch = need("torch")
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype, device="meta")
    made.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        made.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return made


__all__ = ["able", "replace", "write_out"]
