"""`slicevote-server`: runs the service and tends its archives."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slicevote_server import __version__
from slicevote_server.archive_commands import archive_app
from slicevote_server.errors import EngineError, StartupError
from slicevote_server.evaluation.command import evaluate

if TYPE_CHECKING:
    from slicevote_server.intensity import IntensityPolicy

app = typer.Typer(
    name="slicevote-server",
    help="Runs the slicevote service: embeds slices, indexes them, and ranks volumes by their votes.\n\n"
    "A backbone is one ONNX file made by 'slicevote-export'. A data folder holds one archive for every backbone.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(archive_app, name="archive")
app.command()(evaluate)

DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Folder of the archives; created if it is not there.",
        envvar="SLICEVOTE_DATA",
        show_default=False,
    ),
]
BackboneOption = Annotated[
    list[Path],
    typer.Option(
        "--backbone",
        help="ONNX file made by slicevote-export. May be given several times: every backbone has an archive of its "
        "own, and the first is meant where a request names none.",
        show_default=False,
    ),
]

WindowOption = Annotated[
    tuple[float, float],
    typer.Option(help="Values of CT that are black and white, in HU. An archive keeps the window it was made with."),
]
SmoothingOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=10.0,
        help="Standard deviation of the smoothing after resampling, in pixels of 224; makes scans of different "
        "matrix sizes comparable. 0: none, as in the paper. An archive keeps what it was made with.",
    ),
]


@app.callback()
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command(
    epilog="Example:\n\nslicevote-export efficientnet-lite0 --out lite0.onnx\n\n"
    "slicevote-server serve --data archive --backbone lite0.onnx"
)
def serve(
    data: DataOption,
    backbone: BackboneOption,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 takes a free one.", envvar="SLICEVOTE_LISTEN")
    ] = "127.0.0.1:50051",
    metrics: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT to serve Prometheus metrics on, as 127.0.0.1:9464; without it there are none.",
            envvar="SLICEVOTE_METRICS",
        ),
    ] = None,
    thumbnails: Annotated[bool, typer.Option(help="Keep a thumbnail of every ingested slice.")] = True,
    ct_window: WindowOption = (-1000.0, 1000.0),
    smoothing: SmoothingOption = 1.0,
    lsh: Annotated[bool, typer.Option(help="Keep the FAISS LSH side index, for comparison.")] = True,
    lsh_bits: Annotated[int, typer.Option(min=0, max=65536, help="Bits of an LSH code; 0: two a dimension.")] = 0,
    lsh_rescore: Annotated[
        int, typer.Option(min=0, max=1000, help="LSH candidates compared by cosine; 0: none, as in the paper.")
    ] = 0,
    provider: Annotated[
        str,
        typer.Option(
            help="What backbones run on: auto, cpu, cuda, tensorrt (ONNX Runtime), openvino, openvino-bf16. auto takes "
            "what the archive was made with, and for a new archive what is fastest on this machine."
        ),
    ] = "auto",
    strict_numerics: Annotated[
        bool, typer.Option("--strict-numerics", help="Refuse to embed otherwise than the archive was made.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="Threads of a backbone; 0: one a core.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, max=256, help="Most slices embedded at once.")] = 8,
    max_streams: Annotated[int, typer.Option(min=1, max=1000, help="Searches and ingests at a time.")] = 32,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serves searches and ingests over gRPC until it is interrupted."""
    from slicevote_server.archive.lsh import LshSettings
    from slicevote_server.engine import Engine, EngineSettings
    from slicevote_server.runtime import PROVIDERS, RuntimeSettings
    from slicevote_server.service.server import Server, ServerSettings

    levels = logging.getLevelNamesMapping()
    if log_level.upper() not in levels:
        raise typer.BadParameter(f"'{log_level}' is none of debug, info, warning, error", param_hint="--log-level")
    if provider not in ("auto", *PROVIDERS):
        raise typer.BadParameter(f"'{provider}' is none of auto, {', '.join(PROVIDERS)}", param_hint="--provider")
    if not ct_window[0] < ct_window[1]:
        raise typer.BadParameter("the lower value must be less than the upper one", param_hint="--ct-window")
    _require_address(listen, "--listen")
    if metrics is not None:
        _require_address(metrics, "--metrics")
    logging.basicConfig(
        level=levels[log_level.upper()], format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    settings = EngineSettings(
        policy=_policy(ct_window, smoothing),
        thumbnails=thumbnails,
        runtime=RuntimeSettings(provider, threads, strict_numerics),
        batch_size=batch_size,
        lsh=LshSettings(lsh_bits, lsh_rescore) if lsh else None,
    )
    engine = Engine(data, backbone, settings)
    try:
        server = Server(engine, ServerSettings(address=listen, max_streams=max_streams, metrics_address=metrics))
        asyncio.run(server.run())
    finally:
        engine.close()


def _policy(ct_window: tuple[float, float], smoothing: float) -> IntensityPolicy:
    from slicevote_server.intensity import IntensityPolicy

    return IntensityPolicy(ct_window_hu=ct_window, smoothing_px=smoothing)


def _require_address(address: str, option: str) -> None:
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and int(port) < 65536):
        raise typer.BadParameter(f"'{address}' is not HOST:PORT", param_hint=option)


def main() -> None:
    """Runs the command line: exit code 0 on success, 2 on misuse, 1 on failure."""
    try:
        app()
    except ModuleNotFoundError as error:
        print(f"error: the package {error.name} is not installed; pip install 'slicevote[server]'", file=sys.stderr)
        sys.exit(1)
    except (StartupError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
