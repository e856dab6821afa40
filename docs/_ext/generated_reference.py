"""Sphinx extension: writes the reference of commands, settings, backbones, and messages from the code.

A page says `<!-- generated: NAME -->` where a part belongs. Whatever has no description is a warning, and so an error
in a strict build.
"""

from __future__ import annotations

import importlib
import inspect
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from proto_reference import proto_reference
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
PUBLIC_PACKAGES = ("slicevote_client", "slicevote_volumes")


def cell(text: str) -> str:
    """Return text as the content of a table cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def code(text: str) -> str:
    """Return text as code in a table cell; nothing for an empty text."""
    return f"`{text}`".replace("|", "\\|") if text else ""


# --- Commands ---------------------------------------------------------------------------------------------------------


def commands_reference() -> str:
    """Return the commands of every script in pyproject.toml as Markdown."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    parts = []
    for script, entry in scripts.items():
        module = importlib.import_module(entry.partition(":")[0])
        app = module.build_app() if hasattr(module, "build_app") else module.app
        parts += [f"({script})=", f"## {script}", ""]
        parts += _commands(typer.main.get_command(app), script, 3)
    return "\n".join(parts)


def _commands(command: Any, path: str, level: int) -> Iterator[str]:
    if hasattr(command, "commands"):
        if level > 3:
            yield from (f"{'#' * level} {path}", "")
        yield from (_prose(command.help), "")
        for name, sub in command.commands.items():
            yield from _commands(sub, f"{path} {name}", level + (0 if level == 3 else 1))
        return
    if level > 2 and " " in path:
        yield from (f"{'#' * level} {path}", "")
    if not command.help:
        logger.warning("the command %s has no help", path)
    yield from (_prose(command.help), "")
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = " ".join(_metavar(parameter) for parameter in shown if parameter.param_type_name == "argument")
    yield from ("```text", f"{path} [OPTIONS] {arguments}".rstrip(), "```", "")
    flags = {setting.flag for setting in _settings()}
    if flags <= {option for parameter in shown for option in parameter.opts}:
        shown = [parameter for parameter in shown if not flags & set(parameter.opts)]
        yield from ("Every [setting](settings.md) is an option, and so are:", "")
    groups: dict[str, list[Any]] = {}
    for parameter in shown:
        groups.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(parameter)
    for group, parameters in groups.items():
        yield from ((f"**{group}**", "") if group else ())
        yield from ("| Option | Default | Description |", "|---|---|---|")
        for parameter in parameters:
            yield _option(parameter, path)
        yield ""


def _option(parameter: Any, path: str) -> str:
    description = getattr(parameter, "help", "") or ""
    if not description and parameter.param_type_name == "option":
        logger.warning("the option %s of %s has no help", parameter.opts[0], path)
    if parameter.param_type_name == "argument":
        name = code(_metavar(parameter))
    else:
        value = "" if parameter.is_flag or parameter.count else f" {_value(parameter)}"
        name = "<br>".join(code(f"{option}{value}") for option in (*parameter.opts, *parameter.secondary_opts))
    if parameter.envvar:
        variable = parameter.envvar if isinstance(parameter.envvar, str) else parameter.envvar[0]
        description = f"{description} Variable: `{variable}`."
    return f"| {name} | {_default(parameter)} | {cell(description)} |"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _value(parameter: Any) -> str:
    """Return the placeholder of an option's value."""
    if parameter.metavar:
        return str(parameter.metavar)
    annotation = parameter.type_descriptor.annotation
    choices = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "|".join(choices)
    kind = choices[0] if choices else annotation
    return "PATH" if kind is Path else "NUMBER" if kind in (int, float) else "TEXT"


def _default(parameter: Any) -> str:
    default = parameter.default
    if parameter.required:
        return "*required*"
    if callable(default) or default is None or default is False or default in ("", (), []):
        return ""
    if isinstance(parameter.show_default, str):
        return cell(parameter.show_default)
    if isinstance(default, bool):
        return code(parameter.opts[0])
    return code(" ".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default))


def _prose(text: str | None) -> str:
    """Return a help text; indented lines, which are commands, as a block."""
    paragraphs = inspect.cleandoc(text or "").replace("\b\n", "").split("\n\n")
    lines: list[str] = []
    for paragraph in paragraphs:
        if paragraph.startswith("  "):
            if lines and lines[-1] == "```":
                lines[-1:] = [paragraph.strip(), "```"]
            else:
                lines += ["", "```text", paragraph.strip(), "```"]
        else:
            lines += ["", paragraph]
    return "\n".join(lines).strip()


# --- Settings ---------------------------------------------------------------------------------------------------------


def settings_reference() -> str:
    """Return the settings of the server as Markdown, one table for each group."""
    parts: list[str] = []
    group = None
    for setting in _settings():
        if setting.group != group:
            group = setting.group
            parts += ["", f"## {group}", "", "| Flag, variable, TOML key | Default | Description |", "|---|---|---|"]
        if not setting.description:
            logger.warning("the setting %s has no description", setting.flag)
        names = "<br>".join(map(code, (setting.flag, setting.variable, setting.key)))
        allowed = cell(setting.type[0].upper() + setting.type[1:])
        parts.append(f"| {names} | {code(setting.default)} | {cell(setting.description)}<br>*{allowed}* |")
    return "\n".join(parts)


def _settings() -> tuple[Any, ...]:
    describe = importlib.import_module("slicevote_server.settings_sources").describe
    return tuple(describe(importlib.import_module("slicevote_server.settings").Settings))


# --- Backbones --------------------------------------------------------------------------------------------------------


def backbones_reference() -> str:
    """Return the table of the backbones that can be exported."""
    registry = importlib.import_module("slicevote_exporters.registry")
    names = {registry.IMAGENET: "ImageNet", registry.HALF: "0.5 / 0.5", registry.CLIP: "CLIP"}
    needs = {"nothing": "in a Python package", "hub": "downloaded", "file": "your file"}
    lines = ["| Name | D | fp32 file | Normalisation | Pooling | Weights | Licence |", "|---|--:|--:|---|---|---|---|"]
    for spec in registry.BACKBONES:
        normalisation = "; ".join(names[entry] for entry in spec.normalisations)
        size = f"{spec.size_bytes / 2**20:.0f} MiB"
        lines.append(
            f"| `{spec.name}` | {spec.dimension} | {size} | {normalisation} | {cell(spec.pooling)} "
            f"| {needs[spec.source.need]} | {cell(spec.licence)} |"
        )
    lines.append("| `timm:NAME` | | | timm's | timm's | downloaded from timm's hub | the model's |")
    return "\n".join(lines)


def weights_reference() -> str:
    """Return the table of the files that hold the weights of each backbone."""
    registry = importlib.import_module("slicevote_exporters.registry")
    lines = ["| Name | File | From |", "|---|---|---|"]
    for spec in registry.BACKBONES:
        if spec.source.need == "nothing":
            continue
        source = f"<{spec.source.url}>" if spec.source.url else cell(spec.source.description)
        lines.append(f"| `{spec.name}` | {code(spec.source.file_name) or 'your file'} | {source} |")
    lines.append("| `timm:NAME` | `model.safetensors` of the model's page | the address that the error message names |")
    return "\n".join(lines)


# --- Completeness of the Python API -----------------------------------------------------------------------------------


def undocumented_names(package: str) -> list[str]:
    """Return the public names of a package, and of its classes' methods, that have no docstring of their own."""
    module = importlib.import_module(package)
    missing = []
    for name in module.__all__:
        thing = getattr(module, name)
        # A dataclass without a docstring gets its signature as one.
        if not (thing.__doc__ or "").strip() or (thing.__doc__ or "").startswith(f"{name}("):
            missing.append(f"{package}.{name}")
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            documentable = inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod))
            if documentable and not member.startswith("_") and not inspect.getdoc(getattr(thing, member)):
                missing.append(f"{package}.{name}.{member}")
    return missing


def check_api(app: Sphinx, env: Any) -> None:
    """Warn of public names that have no docstring, or that stand on no page."""
    documented = {name for name, _, _, _, _, _ in env.get_domain("py").get_objects()}
    for package in PUBLIC_PACKAGES:
        for name in undocumented_names(package):
            logger.warning("%s has no docstring", name)
        for name in importlib.import_module(package).__all__:
            if not any(known.rpartition(".")[2] == name for known in documented):
                logger.warning("%s.%s is on no page of the reference", package, name)


# --- Sphinx -----------------------------------------------------------------------------------------------------------

PARTS: Mapping[str, Callable[[], str]] = {
    "commands": commands_reference,
    "settings": settings_reference,
    "backbones": backbones_reference,
    "weights": weights_reference,
    "messages": lambda: proto_reference(ROOT / "proto"),
}


def insert_parts(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the markers of a page by what is generated."""
    for name, generate in PARTS.items():
        marker = f"<!-- generated: {name} -->"
        if marker in source[0]:
            source[0] = source[0].replace(marker, generate())


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", insert_parts)
    app.connect("env-check-consistency", check_api)
    return {"parallel_read_safe": True}
