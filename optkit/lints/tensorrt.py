"""TensorRT, full or RTX: its own parser, where a builder is installed, and the rules about quantised integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.errors import UnavailableError
from optkit.formats.onnx.refusal import Refusal, refused
from optkit.formats.tensorrt import engine as tensorrt_engine
from optkit.formats.tensorrt import rules as tensorrt_rules


def look(path: Path, model: Any) -> tuple[list[Refusal], list[str]]:
    """What is refused, and what could not be looked at here."""
    found = list(tensorrt_rules.quantisation(model, path.parent))
    builder = tensorrt_engine.choose("auto")
    try:
        trt = tensorrt_engine.load(builder)
    except UnavailableError as error:
        return found, [f"operators, types and opset, which TensorRT's parser tells: {error.what}"]
    found += tensorrt_rules.unbuilt(model, builder)
    typed = list(tensorrt_rules.types(model))
    found += typed
    told = {refusal.node for refusal in found}
    nodes = list(model.graph.node)
    for index, operator, said in _parsed(trt, builder, path):
        if not 0 <= index < len(nodes):
            if typed and "Failed to convert" in said:  # told above, by name
                continue
            found.append(Refusal("", operator, said, tensorrt_rules.remedy(operator, said)))
        elif (nodes[index].name or nodes[index].output[0]) not in told:
            what = "there is no such operator" if tensorrt_rules.unknown(said) else said
            found.append(refused(nodes[index], what, tensorrt_rules.remedy(nodes[index].op_type, said)))
    return found, []


def _parsed(trt: Any, builder: str, path: Path) -> list[tuple[int, str, str]]:
    """The parser's errors about a file: index of the node, operator, text. Weights beside the file are found."""
    log = tensorrt_engine.logger(builder)
    maker = trt.Builder(log)  # it and the network have to outlive the parser, and the parser its errors
    network = maker.create_network(tensorrt_engine.network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if parser.supports_model_v2(path.read_bytes(), str(path)):
        return []
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [(error.node(), error.node_operator(), tensorrt_engine.plain(error.desc())) for error in errors]
