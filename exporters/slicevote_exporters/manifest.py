"""Write and read the manifest: a backbone's description of itself, as JSON in the ONNX file's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from slicevote.contract import MANIFEST_KEY, MANIFEST_SCHEMA_VERSION
from slicevote.v1 import backbone_pb2

from slicevote_exporters.errors import ManifestError

if TYPE_CHECKING:
    import onnx


def to_json(manifest: backbone_pb2.BackboneManifest) -> str:
    """Return the manifest as one line of JSON: the contract's field names in its order, defaults included."""
    fields = json_format.MessageToDict(
        manifest, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def to_dict(manifest: backbone_pb2.BackboneManifest) -> dict[str, Any]:
    """Return the manifest as a dictionary that JSON can express."""
    document: dict[str, Any] = json.loads(to_json(manifest))
    return document


def attach(model: onnx.ModelProto, manifest: backbone_pb2.BackboneManifest) -> None:
    """Put the manifest into the model's metadata, replacing an existing one."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != MANIFEST_KEY]
    del model.metadata_props[:]
    for key, value in (*kept, (MANIFEST_KEY, to_json(manifest))):
        model.metadata_props.add(key=key, value=value)


def read(path: Path) -> backbone_pb2.BackboneManifest:
    """Read a file's manifest.

    Raises:
        ManifestError: The file cannot be read, is not ONNX, or has no manifest that this version can read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ManifestError(f"{path} cannot be opened ({error.strerror or error})") from error
    except DecodeError as error:
        raise ManifestError(f"{path} is not an ONNX file, or is cut short") from error
    return _parse(((entry.key, entry.value) for entry in model.metadata_props), path)


def _parse(entries: Iterable[tuple[str, str]], path: Path) -> backbone_pb2.BackboneManifest:
    text = dict(entries).get(MANIFEST_KEY)
    if text is None:
        raise ManifestError(f"{path} has no {MANIFEST_KEY} in its metadata; it was not written by slicevote-export")
    try:
        # A later version may have written more fields; those that are known are still worth showing.
        manifest = json_format.Parse(text, backbone_pb2.BackboneManifest(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ManifestError(f"the manifest of {path} is damaged: {error}") from error
    if manifest.schema_version != MANIFEST_SCHEMA_VERSION:
        raise ManifestError(
            f"the manifest of {path} has version {manifest.schema_version}; this slicevote-export reads version "
            f"{MANIFEST_SCHEMA_VERSION}"
        )
    return manifest
