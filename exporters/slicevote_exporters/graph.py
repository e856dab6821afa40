"""Trace a PyTorch backbone to an ONNX model that holds nothing of the exporting machine: no paths, no stack traces."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

import onnx
import torch
from slicevote.contract import INPUT_NAME, INPUT_SIZE, OUTPUT_NAME

from slicevote_exporters.built import AROUND_NETWORK, NETWORK, OPSET, BuiltBackbone
from slicevote_exporters.errors import ExportError
from slicevote_exporters.torch_graph import LoadedBackbone, ServingGraph, embed_in_torch, weights_sha256


def trace(backbone: LoadedBackbone) -> BuiltBackbone:
    """Export a backbone's serving graph in fp32.

    Raises:
        ExportError: PyTorch cannot export the network.
    """
    serving = ServingGraph(backbone)
    return BuiltBackbone(
        model=to_onnx(serving),
        embed_in_torch=partial(embed_in_torch, serving),
        weights_sha256=weights_sha256(backbone.weights),
        weights_source=backbone.weights_source,
        normalisations=tuple(branch.normalisation for branch in backbone.branches),
        parameter_count=backbone.parameter_count,
        pooling=backbone.pooling,
        notes=backbone.notes,
    )


def to_onnx(serving: ServingGraph) -> onnx.ModelProto:
    """Export a serving graph with a dynamic batch axis.

    Args:
        serving: In evaluation mode.

    Returns:
        The model in fp32, with its weights inside and none of the exporter's metadata.

    Raises:
        ExportError: PyTorch cannot export the network, for example because it does not take 224 x 224.
    """
    example = torch.zeros(2, INPUT_SIZE, INPUT_SIZE)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                serving,
                (example,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ExportError(f"PyTorch cannot export this network to ONNX ({_first_line(cause)})") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _name_in_order(model.graph)
    del model.metadata_props[:]
    _drop_annotations(model.graph)
    return model


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress and its warnings about other people's models off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _drop_annotations(graph: onnx.GraphProto) -> None:
    """Remove the exporter's debugging notes: stack traces with file paths, class names, shapes of values."""
    del graph.metadata_props[:]
    del graph.value_info[:]
    graph.doc_string = ""
    annotated: tuple[Any, ...] = (*graph.node, *graph.input, *graph.output, *graph.initializer)
    for item in annotated:
        del item.metadata_props[:]
        item.doc_string = ""


def _name_in_order(graph: onnx.GraphProto) -> None:
    """Name the graph, its nodes and its values by their position, and mark the nodes around the network.

    The names then depend on the graph alone, however a version of PyTorch numbers its values, and tell a conversion to
    another precision which nodes belong to the network.
    """
    graph.name = "backbone"
    kept = {value.name for value in (*graph.input, *graph.output)}
    new_names: dict[str, str] = {"": ""}
    for index, tensor in enumerate(graph.initializer):
        new_names[tensor.name] = tensor.name = f"w{index}"
    for index, node in enumerate(graph.node):
        place = NETWORK if _is_of_network(node) else AROUND_NETWORK
        node.name = f"{place}{node.op_type}_{index}"
        for position, name in enumerate(node.input):
            node.input[position] = new_names.get(name, name)
        for position, name in enumerate(node.output):
            if name and name not in kept:
                new_names[name] = f"{node.op_type}_{index}_{position}"
                node.output[position] = new_names[name]


def _is_of_network(node: onnx.NodeProto) -> bool:
    """Return whether a node lies inside a network of the serving graph, by the exporter's note of the modules."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "")
    return "'networks." in scopes
