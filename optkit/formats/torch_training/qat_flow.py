"""Which tensors of a torch model an int8 runtime needs as integers, found by watching one forward.

The places are those that `onnx.quantize` takes: what goes into convolutions and linear layers, their weights, and, in
convolutional models for onnxruntime or OpenVINO, what lies between them, so that one integer kernel hands over to the
next. What a kernel does along the way (relu; for OpenVINO an addition) has nothing in front of it; tensors that differ
in shape alone, or are chosen from one another (max pooling), share a grid.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optkit.errors import StepError, did_you_mean
from optkit.formats.torch.calls import handle_calls, tensor_slots
from optkit.formats.torch.quantised import Bias, Call, Weight
from optkit.plugin import need

CONV = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
LINEAR = ("linear", "addmm")
HEAVY = (*CONV, *TRANSPOSED, *LINEAR)
OPERANDS = {"addmm": {"bias": ("0", "input"), "input": ("1", "mat1"), "weight": ("2", "mat2")}}
"""Slots of what a heavy call takes, by number and by name, where they are not those below."""
USUAL = {"input": ("0", "input"), "weight": ("1", "weight"), "bias": ("2", "bias")}
FUSED = ("relu", "relu_", "relu6", "hardtanh", "clamp", "clip")
SAME = ("flatten", "reshape", "view", "squeeze", "unsqueeze", "transpose", "permute", "contiguous", "pad", "max_pool1d",
        "max_pool2d")  # fmt: skip
ADD = ("add", "__add__", "__radd__", "__iadd__")
BETWEEN = (*ADD, *FUSED, "avg_pool2d", "adaptive_avg_pool2d", "cat", "concat", "max_pool2d", "flatten", "reshape",
           "view", "squeeze", "unsqueeze")  # fmt: skip
IN_PLACE = ("relu_",)  # its operand must stay the caller's tensor


@dataclass
class Seen:
    """One call of the forward: numbers of the values it takes, by slot, and of those it gives."""

    key: str
    name: str
    takes: dict[str, int]
    gives: list[int]
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass
class Flow:
    """A forward's calls in order.

    dims: the rank of each value; floats: those of a floating-point type. ends: the values that are the model's
    outputs; None where an output is none of the values.
    """

    calls: list[Seen]
    dims: dict[int, int]
    floats: set[int]
    ends: set[int] | None = None

    def users(self) -> dict[int, list[tuple[Seen, str]]]:
        """Per value who takes it, and in which slot."""
        found: dict[int, list[tuple[Seen, str]]] = {}
        for call in self.calls:
            for slot, value in call.takes.items():
                found.setdefault(value, []).append((call, slot))
        return found

    def idle(self) -> set[str]:
        """Keys of the calls on which no output depends: what exporters leave out, such as a pooler nobody asks for."""
        if self.ends is None:
            return set()
        needed, found = set(self.ends), set()
        for call in reversed(self.calls):
            # What writes into a tensor may write into one that is looked at through another.
            writes = call.name == "__setitem__" or (call.name.endswith("_") and not call.name.endswith("__"))
            if writes or needed.intersection(call.gives):
                needed.update(call.takes.values())
            else:
                found.add(call.key)
        return found

    def uses(self) -> Counter[str]:
        """How many slots take each parameter."""
        return Counter(name for call in self.calls for name in call.parameters.values())


def watch(module: Any, run: Any) -> Flow:
    """The flow of one forward of the module; run: calls the model that the module is in, and gives its outputs."""
    torch = need("torch")
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    numbers: dict[int, int] = {}
    kept: list[Any] = []  # so that no id is given twice
    flow = Flow([], {}, set())

    def number(tensor: Any, fresh: bool) -> int:
        if fresh or id(tensor) not in numbers:
            numbers[id(tensor)] = len(kept)
            flow.dims[len(kept)] = tensor.dim()
            if tensor.is_floating_point():
                flow.floats.add(len(kept))
            kept.append(tensor)
        return numbers[id(tensor)]

    def handle(key: str, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = tensor_slots(args, kwargs)
        parameters = {slot: names[id(t)] for slot, t in given.items() if id(t) in names}
        takes = {slot: number(t, False) for slot, t in given.items() if slot not in parameters}
        result = func(*args, **kwargs)
        results = result if isinstance(result, list | tuple) else [result]
        gives = [number(t, True) for t in results if isinstance(t, torch.Tensor)]
        if gives or name == "__setitem__":  # not `x.dim()` and the like
            flow.calls.append(Seen(key, name, takes, gives, parameters))
        return result

    end = handle_calls(module, handle)
    try:
        with torch.no_grad():
            outputs = list(run().values())
    finally:
        end()
    flow.ends = {numbers[id(t)] for t in outputs} if all(id(t) in numbers for t in outputs) else None
    return flow


# ------------------------------------------------------------------------------------------------ batch norms


def foldable(module: Any, flow: Flow) -> list[tuple[str, str]]:
    """Layers, each with the batch norm that alone takes what it gives, both run once."""
    torch = need("torch")
    users = flow.users()
    times = Counter(call.key.rpartition(":")[0] for call in flow.calls)
    found = []
    for call in flow.calls:
        if call.name not in HEAVY or len(call.gives) != 1:
            continue
        after = users.get(call.gives[0], [])
        if len(after) != 1 or after[0][0].name != "batch_norm" or times[call.key.rpartition(":")[0]] > 1:
            continue
        layer, norm = (key.partition(":")[0] for key in (call.key, after[0][0].key))
        own, other = module.get_submodule(layer), module.get_submodule(norm)
        kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
        if not isinstance(own, kinds) or not isinstance(other, torch.nn.modules.batchnorm._BatchNorm):
            continue
        once = times[after[0][0].key.rpartition(":")[0]] == 1
        plain = own._parameters.get("weight") is not None and other.affine and other.running_mean is not None
        grouped = getattr(own, "transposed", False) and own.groups > 1
        vector = not isinstance(own, torch.nn.Linear) or flow.dims[call.gives[0]] == 2
        if once and plain and not grouped and vector and flow.uses()[f"{layer}.weight"] == 1:
            found.append((layer, norm))
    return found


def fold(module: Any, pairs: Sequence[tuple[str, str]]) -> None:
    """Multiply each batch norm into its layer; the module answers as before."""
    torch = need("torch")
    from optkit.formats.torch.quantised import fold_away

    fusion = torch.nn.utils.fusion
    made = []
    for layer, norm in pairs:
        own, bn = module.get_submodule(layer), module.get_submodule(norm)
        rest = (bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
        made.append(
            fusion.fuse_linear_bn_weights(own.weight, own.bias, *rest) if isinstance(own, torch.nn.Linear)
            else fusion.fuse_conv_bn_weights(own.weight, own.bias, *rest, transpose=own.transposed)
        )  # fmt: skip
    fold_away(module, pairs)
    for (layer, _), (weight, bias) in zip(pairs, made, strict=True):
        own = module.get_submodule(layer)
        own.weight.data, own.bias.data = weight.detach().clone(), bias.detach().clone()


# ------------------------------------------------------------------------------------------------ places


WHOLE = {
    "multi_head_attention_forward": "torch computes all of nn.MultiheadAttention in one call",
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "torch computes all of a recurrent layer in one call"),
    "embedding": "it looks its table up and multiplies nothing",
    "embedding_bag": "it looks its table up and multiplies nothing",
}
"""What has weights and is left in float, and why."""


@dataclass
class Places:
    """What is to be rounded where. activations: name to the values on that grid.

    layers: keys of the quantised layers, each with the path of its weight. left: reasons, with the layers' paths.
    """

    calls: dict[str, Call]
    weights: dict[str, Weight]
    biases: dict[str, Bias]
    activations: dict[str, list[int]]
    layers: dict[str, str]
    left: dict[str, list[str]]


def places(module: Any, flow: Flow, *, target: str, per_channel: bool, bits: int, keep: Sequence[str]) -> Places:
    """Choose them. Raises StepError for a glob in `keep` that matches no layer, and where nothing is left to round."""
    return _Chooser(module, flow, target, per_channel, bits, keep).choose()


class _Chooser:
    def __init__(self, module: Any, flow: Flow, target: str, per_channel: bool, bits: int, keep: Sequence[str]) -> None:
        self.module, self.flow, self.target = module, flow, target
        self.per_channel, self.most, self.keep = per_channel, 2 ** (bits - 1) - 1, keep
        self.users, self.uses, self.idle = flow.users(), flow.uses(), flow.idle()
        self.parent: dict[int, int] = {}
        self.left: dict[str, list[str]] = {}

    def choose(self) -> Places:
        heavy = self._heavy()
        if not heavy:
            raise StepError("nothing in the model can be quantised", subject="with.keep" if self.keep else "model",
                            details="\n".join(f"{why}: {', '.join(who)}" for why, who in self.left.items()),
                            hint="keep fewer layers" if self.keep else "convolutions, linear layers and addmm with "
                            "weights of their own can be")  # fmt: skip
        convolutional = sum(c.name not in LINEAR for c in heavy) >= sum(c.name in LINEAR for c in heavy)
        between = self._between(heavy) if convolutional and self.target != "tensorrt" else []
        for call in self.flow.calls:
            if call.name in SAME and len(call.takes) == 1 and len(call.gives) == 1:
                self._unite(next(iter(call.takes.values())), call.gives[0])
        operands = {c.key: {_slot(c, "input"): c.takes[_slot(c, "input")]} for c in heavy}
        operands |= {c.key: self._operands(c) for c in between}
        results = {c.key: c.gives[0] for c in (*heavy, *between) if self._needs(c, operands)}
        return self._named(heavy, operands, results)

    def _heavy(self) -> list[Seen]:
        matched: set[str] = set()
        found = []
        shown: list[str] = []
        for call in self.flow.calls:
            if call.name not in HEAVY:
                if call.name in WHOLE:
                    self._leave(WHOLE[call.name], call)
                continue
            weight = call.parameters.get(_slot(call, "weight"))
            path = weight.rpartition(".")[0] if weight else call.key.partition(":")[0]
            shown.append(path)
            kept = [glob for glob in self.keep if fnmatch.fnmatchcase(path, glob)]
            matched.update(kept)
            if kept:
                self._leave("kept", call)
            elif call.key in self.idle:
                self._leave("no output depends on it", call)
            elif weight is None:
                self._leave("without a weight of its own", call)
            elif self.uses[weight] > sum(c.parameters.get(_slot(c, "weight")) == weight for c in self.flow.calls
                                         if c.name in HEAVY):  # fmt: skip
                self._leave(f"its weight {weight} is used otherwise too", call)
            elif _slot(call, "input") not in call.takes:
                self._leave("its input is a weight", call)
            else:
                found.append(call)
        for glob in self.keep:
            if glob not in matched:
                raise StepError(f"no layer is called {glob!r}", subject="with.keep", hint=did_you_mean(glob, shown))
        return found

    def _leave(self, why: str, call: Seen) -> None:
        self.left.setdefault(why, []).append(call.key.partition(":")[0])

    def _between(self, heavy: Sequence[Seen]) -> list[Seen]:
        found = []
        for call in self.flow.calls:
            floats = [v for v in call.takes.values() if v in self.flow.floats]
            if (
                call.key in self.idle
                or call.name not in BETWEEN
                or len(call.gives) != 1
                or call.gives[0] not in self.flow.floats
                or not floats
            ):
                continue
            if call.name in ADD and len(floats) < 2:
                continue
            if call.parameters or len(floats) < len(call.takes):
                continue
            found.append(call)
        return found

    def _operands(self, call: Seen) -> dict[str, int]:
        """What is rounded before a call between layers: not what its maker's kernel hands on by itself."""
        made_by = {value: c for c in self.flow.calls for value in c.gives}
        if call.name in IN_PLACE:
            return {}
        alone = {
            slot: made_by[value].name for slot, value in call.takes.items()
            if value in made_by and len(self.users[value]) == 1
        }  # fmt: skip
        if call.name in FUSED and set(alone.values()) & {*HEAVY, *ADD}:
            return {}
        added = [slot for slot, maker in alone.items() if call.name in ADD and maker in CONV][:1]
        summed = added if self.target == "openvino" else []  # its convolutions add before they round
        return {slot: value for slot, value in call.takes.items() if slot not in summed}

    def _needs(self, call: Seen, operands: Mapping[str, Mapping[str, int]]) -> bool:
        """Whether a call's result is rounded at once, as not every one who takes it does that."""
        value = call.gives[0]
        users = self.users.get(value, [])
        if call.name in HEAVY and (call.name in LINEAR or self.target == "tensorrt"):
            return False
        if len(users) == 1 and users[0][0].name in (*FUSED, *ADD) and users[0][0].key in operands:
            return False
        return not users or any(slot not in operands.get(c.key, {}) for c, slot in users)

    # --- grids

    def _unite(self, one: int, other: int) -> None:
        self.parent[self._root(one)] = self._root(other)

    def _root(self, value: int) -> int:
        while value in self.parent and self.parent[value] != value:
            value = self.parent[value]
        return value

    def _named(
        self, heavy: Sequence[Seen], operands: Mapping[str, Mapping[str, int]], results: Mapping[str, int]
    ) -> Places:
        names: dict[int, str] = {}
        made = Places({}, {}, {}, {}, {}, self.left)

        def name(value: int) -> str:
            at = names.setdefault(self._root(value), f"a{len(names)}")
            values = made.activations.setdefault(at, [])
            if value not in values:
                values.append(value)
            return at

        layers = {call.key: call for call in heavy}
        for call in self.flow.calls:
            if call.key not in operands:
                continue
            at = {slot: name(value) for slot, value in operands[call.key].items()}
            result = name(results[call.key]) if call.key in results else None
            weight = bias = None
            if call.key in layers:
                weight, bias = self._layer(call, at[_slot(call, "input")], made)
            if at or result or weight:
                made.calls[call.key] = Call(at, result, weight, bias)
        return made

    def _layer(self, call: Seen, at: str, made: Places) -> tuple[tuple[str, str], tuple[str, str] | None]:
        slot = _slot(call, "weight")
        weight = call.parameters[slot]
        path = weight.rpartition(".")[0]
        owner = self.module.get_submodule(path)
        axis: int | None = 1 if call.name in (*TRANSPOSED, "addmm") else 0
        if not self.per_channel or (call.name in TRANSPOSED and getattr(owner, "groups", 1) > 1):
            axis = None
        made.weights[weight] = Weight(axis, -self.most, self.most)
        made.layers[call.key] = path
        bias_slot = _slot(call, "bias")
        bias = call.parameters.get(bias_slot)
        flat = call.name not in LINEAR or self.flow.dims[call.gives[0]] == 2
        if self.target == "tensorrt" or bias is None or not flat or self.uses[bias] > 1 or self.uses[weight] > 1:
            return (slot, weight), None
        made.biases[bias] = Bias(weight, at)
        return (slot, weight), (bias_slot, bias)


def _slot(call: Seen, what: str) -> str:
    number, name = OPERANDS.get(call.name, USUAL)[what]
    have = {*call.takes, *call.parameters}
    return name if name in have else number


__all__ = ["Flow", "Places", "Seen", "fold", "foldable", "places", "watch"]
