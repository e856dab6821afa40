"""The gRPC services and messages as Markdown, from the comments of the .proto files."""

from __future__ import annotations

import importlib.resources
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

PACKAGE = ".slicevote.v1."
# Numbers of the fields of FileDescriptorProto and DescriptorProto, which make up the paths of source locations.
MESSAGES, ENUMS, SERVICES, FIELDS, MEMBERS = 4, 5, 6, 2, 2

Comments = dict[tuple[int, ...], str]


def proto_reference(folder: Path) -> str:
    """Return the services, then the messages and enums, of all .proto files below a folder."""
    files = [(file, _comments(file)) for file in _compiled(folder)]
    parts = ["## Services", ""]
    for file, comments in files:
        parts += _services(file, comments)
    for file, comments in files:
        parts += [f"## {file.name.rpartition('/')[2]}", ""]
        for number, message in enumerate(file.message_type):
            parts += _message(message, comments, (MESSAGES, number))
        for number, enum in enumerate(file.enum_type):
            parts += _enum(enum, comments, (ENUMS, number))
    return "\n".join(parts)


def _compiled(folder: Path) -> list[FileDescriptorProto]:
    sources = sorted(folder.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        include = importlib.resources.files("grpc_tools") / "_proto"
        words = ["protoc", f"-I{folder}", f"-I{include}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main([*words, *map(str, sources)]) != 0:
            raise RuntimeError("protoc failed; see above")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def _comments(file: FileDescriptorProto) -> Comments:
    return {tuple(location.path): location.leading_comments for location in file.source_code_info.location}


def _text(comment: str) -> str:
    return "\n".join(line.removeprefix(" ") for line in comment.strip("\n").splitlines())


def _row(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|").replace("[", "\\[")


def _services(file: FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for number, service in enumerate(file.service):
        yield from (f"### {service.name}", "", _text(comments[SERVICES, number]), "")
        for index, method in enumerate(service.method):
            request = ("stream of " if method.client_streaming else "") + _link(method.input_type)
            response = ("stream of " if method.server_streaming else "") + _link(method.output_type)
            yield from (f"#### {service.name}.{method.name}", "", f"{request} → {response}", "")
            yield from (_text(comments[SERVICES, number, 2, index]), "")


def _message(message: DescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield from (f"({_anchor(message.name)})=", f"### {message.name}", "", _text(comments[path]), "")
    if not message.field:
        return
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    yield from ("| No. | Field | Type | Description |", "|--:|---|---|---|")
    for number, field in enumerate(message.field):
        kind = _type(field, maps)
        if field.HasField("oneof_index") and not field.proto3_optional:
            kind += f"<br>*one of {message.oneof_decl[field.oneof_index].name}*"
        yield f"| {field.number} | `{field.name}` | {kind} | {_row(comments[(*path, FIELDS, number)])} |"
    yield ""


def _enum(enum: EnumDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield from (f"({_anchor(enum.name)})=", f"### {enum.name}", "", _text(comments[path]), "")
    yield from ("| No. | Value | Description |", "|--:|---|---|")
    for number, value in enumerate(enum.value):
        yield f"| {value.number} | `{value.name}` | {_row(comments[(*path, MEMBERS, number)])} |"
    yield ""


def _type(field: FieldDescriptorProto, maps: dict[str, DescriptorProto]) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = entry.field
        return f"map of {_type(key, maps)} to {_type(value, maps)}"
    if field.type_name:
        kind = _link(field.type_name)
    else:
        kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    return f"optional {kind}" if field.proto3_optional else kind


def _link(name: str) -> str:
    if name.startswith(PACKAGE):
        short = name.removeprefix(PACKAGE)
        return f"[{short}](#{_anchor(short)})"
    return name.lstrip(".")


def _anchor(name: str) -> str:
    return f"message-{name.lower()}"
