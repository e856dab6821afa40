"""The command `slicevote-server`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slicevote_server import __version__
from slicevote_server.archive_commands import archive_app
from slicevote_server.errors import EngineError, StartupError
from slicevote_server.log import configure_logging, silence_grpc

if TYPE_CHECKING:
    from slicevote_server.settings import Settings
    from slicevote_server.settings_sources import Configuration

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with settings. Variables override it, and flags override both.",
        metavar="FILE",
        envvar="SLICEVOTE_CONFIG",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

_EVERYWHERE = (
    "Every option is also a variable and a key of the --config file: --lsh-bits is SLICEVOTE_LSH_BITS and lsh_bits. "
    "'slicevote-server settings' prints the effective values and where they come from.\n\n"
)


def build_app() -> typer.Typer:
    """Return the command line. Raises ModuleNotFoundError if the server's dependencies are not installed."""
    # Their modules take a second to load, and are not there where only the client is installed.
    from slicevote_server.settings import USUAL, Settings
    from slicevote_server.settings_sources import with_options

    app = typer.Typer(
        name="slicevote-server",
        help="Run the slicevote service: it embeds slices, indexes them, and ranks volumes by their votes.\n\n"
        "A backbone is one ONNX file made by 'slicevote-export'. A data folder holds one archive per backbone.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    app.command(
        "serve",
        epilog=f"{_EVERYWHERE}Example:\n\nslicevote-export efficientnet-lite0 --out lite0.onnx\n\n"
        "slicevote-server serve --data archive --backbone lite0.onnx",
    )(with_options(serve, Settings, USUAL))
    app.command(
        "settings",
        epilog=f"{_EVERYWHERE}Example:\n\nslicevote-server settings --ct-window -200 300 > server.toml\n\n"
        "slicevote-server serve --config server.toml --data archive --backbone lite0.onnx",
    )(with_options(settings, Settings, USUAL))
    app.add_typer(archive_app, name="archive")
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def serve(flags: Mapping[str, Any], config: ConfigOption = None) -> None:
    """Serve searches and ingests over gRPC until interrupted."""
    from slicevote_server.engine import Engine
    from slicevote_server.service.call import RequestIdFilter
    from slicevote_server.service.server import Server

    configuration = _read(flags, config)
    configuration.require("data", "backbone")
    settings = configuration.settings
    assert settings.data is not None
    configure_logging(settings.log_level, RequestIdFilter())
    engine = Engine(settings.data, settings.backbone, settings.for_engine())
    try:
        asyncio.run(Server(engine, settings.for_server()).run())
    finally:
        engine.close()


def settings(flags: Mapping[str, Any], config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the effective settings, and where each comes from, as a TOML file that --config reads."""
    effective = list(_read(flags, config).effective())
    if as_json:
        document = {setting.key: {"value": value, "origin": origin} for setting, value, origin in effective}
        print(json.dumps(document, indent=2))
        return
    group = ""
    for setting, value, origin in effective:
        if setting.group != group:
            print(f"{chr(10) if group else ''}# {setting.group}")
            group = setting.group
        # TOML writes strings, numbers, booleans and lists as JSON does, and has no null.
        line = f"{setting.key} = {json.dumps(value)}" if value not in (None, []) else f"# {setting.key} is not set"
        print(f"{line}  # {origin}")


def _read(flags: Mapping[str, Any], config: Path | None) -> Configuration[Settings]:
    from slicevote_server.settings import Settings
    from slicevote_server.settings_sources import read

    return read(Settings, flags=flags, config=config)


def main() -> None:
    """Run the command line: exit code 0 on success, 2 on misuse, 1 on failure."""
    silence_grpc()
    try:
        from slicevote_server.settings_sources import ConfigurationError

        try:
            build_app()()
        except ConfigurationError as error:
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
            sys.exit(2)
    except ModuleNotFoundError as error:
        print(f"error: the package {error.name} is not installed; pip install 'slicevote[server]'", file=sys.stderr)
        sys.exit(1)
    except (StartupError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
