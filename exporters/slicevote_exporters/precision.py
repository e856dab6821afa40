"""Convert a graph to half precision or to eight bits, and state what each precision must reach."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx

from slicevote_exporters.built import AROUND_NETWORK
from slicevote_exporters.errors import PrecisionRefused, needs_packages
from slicevote_exporters.registry import Precision

KEPT_IN_FP32 = ("LayerNormalization", "Softmax")
"""Operators that sum many squares or exponentials, for which half precision is too coarse."""

SINGLE, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16

MATRIX_PRODUCTS = ("MatMul", "Gemm")
LEAST_QUANTISED_SHARE = 0.5
"""Below this share of weights in matrix products, int8 gains nothing."""


@dataclass(frozen=True)
class PrecisionBars:
    """The minimum cosines of a precision."""

    parity: float
    """Between PyTorch in fp32 and the file, for each of the compared slices; below it no file is written."""
    golden: float
    """Between the golden embedding and the same file on another machine; part of the manifest. Looser than the
    difference of two processors, tighter than the effect of a wrong input or a wrong graph."""


BARS: dict[Precision, PrecisionBars] = {
    "fp32": PrecisionBars(parity=0.9999, golden=0.999),
    "fp16": PrecisionBars(parity=0.999, golden=0.995),
    "int8": PrecisionBars(parity=0.97, golden=0.98),
}


def convert(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Return the model in a precision; input and output stay float32.

    Args:
        model: In fp32.
        precision: "fp16" keeps the normalisation of input and output, layer norms and softmax in fp32. "int8"
            quantises the weights of matrix products to 8 bits by output channel, and their inputs at run time.

    Raises:
        PrecisionRefused: The model has too few matrix products for int8 to gain anything.
        MissingPackage: A package that the conversion needs is not installed.
    """
    if precision == "fp16":
        return _to_fp16(model)
    if precision == "int8":
        return _to_int8(model)
    return model


def _to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    with needs_packages("export"):
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    around = [node.name for node in model.graph.node if node.name.startswith(AROUND_NETWORK)]
    with _quiet("onnxruntime.transformers.float16"):
        converted: onnx.ModelProto = convert_float_to_float16(
            _copy(model),
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *KEPT_IN_FP32],
            node_block_list=around,
        )
    _join_casts(converted.graph)
    return _tidied(converted)


def _join_casts(graph: onnx.GraphProto) -> None:
    """Let a node that stays in fp32 read an fp32 result directly, where the converter put a cast to fp16 and back.

    The converter casts before and after every such node, and at the input of the graph. Two of them in a row, such as
    the normalisation of the input, would lose in between the precision they are kept in fp32 for.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    single: dict[str, str] = {}
    for name, widening in casts.items():
        narrowing = casts.get(widening.input[0])
        if narrowing is not None and _target(widening) == SINGLE and _target(narrowing) == HALF:
            single[name] = narrowing.input[0]
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = single.get(name, name)
    # The graph's output keeps its name: the node that computes it in fp32 takes the name over from the cast.
    final = {single[value.name]: value.name for value in graph.output if value.name in single}
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in final.values():
            graph.node.remove(node)
            continue
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = final.get(name, name)


def _target(cast: onnx.NodeProto) -> int:
    return next(int(attribute.i) for attribute in cast.attribute if attribute.name == "to")


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without nodes that nothing reads, in the order the standard requires: inputs first."""
    with needs_packages("export"):
        import onnx_ir
        import onnx_ir.passes.common
    intermediate = onnx_ir.from_proto(model)
    onnx_ir.passes.common.RemoveUnusedNodesPass()(intermediate)
    onnx_ir.passes.common.TopologicalSortPass()(intermediate)
    tidied: onnx.ModelProto = onnx_ir.to_proto(intermediate)
    del tidied.graph.value_info[:]
    return tidied


def _to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    share = quantisable_share(model)
    if share < LEAST_QUANTISED_SHARE:
        raise PrecisionRefused(
            f"int8 gains nothing here: only {share:.0%} of the weights are in matrix products; dynamic int8 leaves the "
            "others, in convolutions and tables, as they are. Use fp32 or fp16"
        )
    with needs_packages("export"):
        from onnxruntime.quantization import QuantType, quantize_dynamic
    with tempfile.TemporaryDirectory(prefix="slicevote-export-") as folder, _quiet(""):
        target = Path(folder) / "int8.onnx"
        quantize_dynamic(
            _copy(model),
            target,
            op_types_to_quantize=list(MATRIX_PRODUCTS),
            per_channel=True,
            # Seven bits: products of eight-bit numbers overflow silently on processors without VNNI.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        quantised = onnx.load(str(target))
    del quantised.graph.value_info[:]
    return quantised


def quantisable_share(model: onnx.ModelProto) -> float:
    """Return the share of the weights in matrix products with constants, 0 to 1."""
    sizes = {tensor.name: prod(tensor.dims) for tensor in model.graph.initializer}
    products = {name for node in model.graph.node if node.op_type in MATRIX_PRODUCTS for name in node.input[1:2]}
    return sum(size for name, size in sizes.items() if name in products) / max(1, sum(sizes.values()))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy; both converters modify the model they are given."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Silence the converters' advice, which is about models that were not prepared."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
