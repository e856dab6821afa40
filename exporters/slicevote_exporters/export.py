"""The export of a backbone: load, build the graph, change its precision, compare, describe, write."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

from slicevote.contract import BACKBONE_NAME, GOLDEN_SEED, INPUT_SIZE, MANIFEST_SCHEMA_VERSION, golden_input
from slicevote.v1 import backbone_pb2

from slicevote_exporters import manifest as manifests
from slicevote_exporters.errors import ExportError, ParityFailed, PrecisionRefused, needs_packages
from slicevote_exporters.registry import TIMM_PREFIX, BackboneSpec, Precision, find

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from slicevote_exporters.built import BuiltBackbone
    from slicevote_exporters.parity import OnnxEmbedder, ParityReport
    from slicevote_exporters.real_slices import NeighbourReport
    from slicevote_exporters.torch_graph import LoadedBackbone

LARGEST_FILE = 2**31 - 2**20
"""Maximum size of a protobuf message in bytes, less the room for everything that is not weights."""


Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and where to write it."""

    spec: BackboneSpec
    out: Path
    weights: Path | None = None
    precision: Precision = "fp32"
    name: str = ""
    """Name in the manifest; the registry's if empty."""
    check_on: Path | None = None
    """Volumes whose slices' nearest neighbours are compared with PyTorch's."""
    force: bool = False
    """Write the file even if it is below the minimum cosine of its precision."""


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    path: Path
    replaced: bool
    """Whether a file of that name existed before."""
    size_bytes: int
    load_seconds: float
    """Time that ONNX Runtime took to open the file."""
    export_seconds: float
    below_bar: bool
    manifest: backbone_pb2.BackboneManifest
    neighbours: NeighbourReport | None
    """None if no volumes to check on were given."""
    notes: tuple[str, ...]


def resolve(name: str) -> BackboneSpec:
    """Return the backbone of a name: one of the registry, or `timm:NAME`.

    Raises:
        UnknownBackbone: There is none.
        MissingPackage: A timm model was named and timm is not installed.
    """
    if not name.startswith(TIMM_PREFIX):
        return find(name)
    with needs_packages("export"):
        from slicevote_exporters.families import timm_models
    return timm_models.describe(name)


def export_backbone(request: ExportRequest, say: Say = lambda _: None) -> ExportReport:
    """Export a backbone to one ONNX file, which appears whole or not at all.

    Args:
        request: What to export.
        say: Called with a line of text at every step.

    Raises:
        ExportError: Something is not as it should be; no file was written, and an existing one is untouched.
    """
    started = time.perf_counter()
    spec = request.spec
    if reason := spec.refused_precisions.get(request.precision):
        raise PrecisionRefused(f"{spec.name} is not exported in {request.precision}: {reason}")
    _require_name(request.name or spec.name)
    _require_writable(request.out)
    with needs_packages(spec.extra):
        from slicevote_exporters.parity import OnnxEmbedder, compare, parity_slices
        from slicevote_exporters.precision import BARS, convert

    say(f"loading the weights of {spec.name}")
    loaded = _load(spec, request.weights)
    if 4 * loaded.parameter_count > LARGEST_FILE:
        raise ExportError(f"{spec.name} has {loaded.parameter_count} weights; one ONNX file holds at most 2 GiB")
    say("building the graph")
    backbone = _built(loaded)
    model = convert(backbone.model, request.precision)
    say("comparing with PyTorch")
    embedder = OnnxEmbedder(model.SerializeToString(deterministic=True))
    slices = parity_slices()
    reference = backbone.embed_in_torch(slices) if backbone.recorded is None else backbone.recorded
    parity = compare(reference, embedder.embed(slices))
    _require_finite(embedder)
    bar = BARS[request.precision]
    below_bar = parity.minimum_cosine < bar.parity
    neighbours = _check_neighbours(request.check_on, backbone, embedder, say)
    if below_bar and not request.force:
        raise ParityFailed(
            f"the {request.precision} file of {spec.name} does not compute what PyTorch computes: the least cosine "
            f"over {parity.input_count} slices is {parity.minimum_cosine:.6f}, {bar.parity} is required"
            f"{_neighbour_sentence(neighbours)}. Nothing was written; use --force to write it anyway"
        )
    golden = embedder.embed(golden_input(GOLDEN_SEED))[0]
    manifest = _describe(request, backbone, model, parity, golden)
    manifests.attach(model, manifest)
    content = model.SerializeToString(deterministic=True)
    replaced = request.out.exists()
    say("writing")
    _write(request.out, content)
    return ExportReport(
        path=request.out,
        replaced=replaced,
        size_bytes=len(content),
        load_seconds=embedder.load_seconds,
        export_seconds=time.perf_counter() - started,
        below_bar=below_bar,
        manifest=manifest,
        neighbours=neighbours,
        notes=backbone.notes,
    )


def _require_finite(embedder: OnnxEmbedder) -> None:
    """Check a black and a white slice: a vector of length 0 cannot be scaled to length 1."""
    from slicevote_exporters.parity import blank_slices, require_unit_vectors

    require_unit_vectors(embedder.embed(blank_slices()), "the file, on a black and a white slice,")


def _check_neighbours(
    path: Path | None, backbone: BuiltBackbone, embedder: OnnxEmbedder, say: Say
) -> NeighbourReport | None:
    if path is None:
        return None
    with needs_packages("export"):
        from slicevote_exporters.real_slices import compare_neighbours, read_slices

    say(f"reading slices under {path}")
    slices, volume_count = read_slices(path)
    say(f"comparing nearest neighbours of {len(slices)} slices")
    return compare_neighbours(backbone.embed_in_torch(slices), embedder.embed(slices), volume_count)


def _neighbour_sentence(neighbours: NeighbourReport | None) -> str:
    if neighbours is None:
        return ""
    return f"; {neighbours.unchanged_share:.1%} of {neighbours.slice_count} real slices keep their nearest neighbour"


def _load(spec: BackboneSpec, weights: Path | None) -> LoadedBackbone | BuiltBackbone:
    module_name, function_name = spec.loader.split(":")
    with needs_packages(spec.extra):
        module = import_module(f"slicevote_exporters.families.{module_name}")
    load: Callable[[BackboneSpec, Path | None], LoadedBackbone | BuiltBackbone] = getattr(module, function_name)
    return load(spec, weights)


def _built(backbone: LoadedBackbone | BuiltBackbone) -> BuiltBackbone:
    """Return the backbone's graph: the one its family wrote itself, or else what PyTorch's exporter makes of it."""
    from slicevote_exporters.built import BuiltBackbone

    if isinstance(backbone, BuiltBackbone):
        return backbone
    with needs_packages("export"):
        from slicevote_exporters.graph import trace
    return trace(backbone)


def _describe(
    request: ExportRequest,
    backbone: BuiltBackbone,
    model: onnx.ModelProto,
    parity: ParityReport,
    golden: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> backbone_pb2.BackboneManifest:
    from slicevote_exporters.precision import BARS

    return backbone_pb2.BackboneManifest(
        schema_version=MANIFEST_SCHEMA_VERSION,
        name=request.name or request.spec.name,
        family=request.spec.family,
        dimension=len(golden),
        input_size=INPUT_SIZE,
        weights_sha256=backbone.weights_sha256,
        weights_source=backbone.weights_source,
        licence=request.spec.licence,
        normalisations=[
            backbone_pb2.Normalisation(mean=normalisation.mean, std=normalisation.std)
            for normalisation in backbone.normalisations
        ],
        precision=request.precision,
        opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        exporter_version=metadata.version("slicevote"),
        golden=backbone_pb2.GoldenEmbedding(
            seed=GOLDEN_SEED, embedding=golden.tolist(), minimum_cosine=BARS[request.precision].golden
        ),
        parity=backbone_pb2.Parity(
            input_count=parity.input_count,
            minimum_cosine=parity.minimum_cosine,
            mean_cosine=parity.mean_cosine,
            maximum_error=parity.maximum_error,
        ),
        parameter_count=backbone.parameter_count,
        pooling=backbone.pooling or request.spec.pooling,
    )


def _require_name(name: str) -> None:
    if not BACKBONE_NAME.fullmatch(name):
        raise ExportError(f"{name!r} cannot name a backbone; use 1 to 64 of a-z, 0-9, '.', '_' and '-'")


def _require_writable(out: Path) -> None:
    """Check before the work, not after it, that the result can be written."""
    if out.is_dir():
        raise ExportError(f"{out} is a folder; give --out the name of a file")
    if not out.parent.is_dir():
        raise ExportError(f"the folder {out.parent} does not exist; create it, or choose another --out")
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"the folder {out.parent} is not writable; choose another --out")


def _write(out: Path, content: bytes) -> None:
    """Write to a temporary file beside the target and rename it, so that a server never sees half a file."""
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o644)
                temporary.replace(out)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ExportError(f"{out} cannot be written ({error.strerror or error})") from error
