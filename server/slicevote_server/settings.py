"""The settings of the server: one field each.

A field gives the flag of `slicevote-server serve`, the `SLICEVOTE_` variable, the key of the TOML file, and the row of
the reference. The defaults are those of the objects that the settings are made into.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from slicevote_server.archive.interface import ArchiveSettings
from slicevote_server.archive.lsh import LshSettings
from slicevote_server.engine import EngineSettings
from slicevote_server.intensity import IntensityPolicy
from slicevote_server.log import LEVELS
from slicevote_server.runtime import PROVIDERS, RuntimeSettings
from slicevote_server.runtime.providers import AUTO
from slicevote_server.service.server import ServerSettings
from slicevote_server.service.slice_stream import StreamTimeouts
from slicevote_server.settings_sources import PREFIX, REQUIRED, setting

USUAL = "Usual settings"
GREY_VALUES = "Grey values"
COMPUTATION = "Computation"
LIMITS = "Limits"
GRAPH = "HNSW graph"
LSH = "LSH index"

_SERVER = ServerSettings()
_POLICY = IntensityPolicy()
_RUNTIME = RuntimeSettings()
_ENGINE = EngineSettings()
_ARCHIVE = ArchiveSettings()
_LSH = LshSettings()


def _split_paths(value: object) -> object:
    return tuple(value.split(os.pathsep)) if isinstance(value, str) else value


def _split_pair(value: object) -> object:
    return tuple(value.split(",")) if isinstance(value, str) else value


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not pair[0] < pair[1]:
        raise ValueError
    return pair


def _percentiles(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= pair[0] < pair[1] <= 100:
        raise ValueError
    return pair


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError
    return value


Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split_paths)]
Pair = Annotated[tuple[float, float], NoDecode, BeforeValidator(_split_pair), AfterValidator(_rising)]
Percentiles = Annotated[tuple[float, float], NoDecode, BeforeValidator(_split_pair), AfterValidator(_percentiles)]
Address = Annotated[str, AfterValidator(_address)]


class Settings(BaseSettings):
    """All settings of the server; see `settings_sources.read`, which reads them from flags, variables and a file."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    data: Path | None = setting(
        USUAL,
        "Folder of the archives; created if it does not exist.",
        None,
        metavar="FOLDER",
        default_text=REQUIRED,
    )
    backbone: Paths = setting(
        USUAL,
        "ONNX file made by slicevote-export. Several: repeat the flag, give a list in TOML, separate them by "
        f"'{os.pathsep}' in the variable. Every backbone has an archive of its own; a request that names none gets the "
        "first.",
        (),
        metavar="FILE.onnx",
        default_text=REQUIRED,
    )
    listen: Address = setting(
        USUAL,
        "Address to listen on; port 0 takes a free one.",
        _SERVER.address,
        metavar="HOST:PORT",
        type="HOST:PORT",
    )
    metrics: Address | None = setting(
        USUAL,
        "Address to serve Prometheus metrics on, such as 127.0.0.1:9464.",
        _SERVER.metrics_address,
        metavar="HOST:PORT",
        type="HOST:PORT",
    )
    provider: str = setting(
        USUAL,
        f"What backbones run on: {', '.join((AUTO, *PROVIDERS))}. auto takes the provider that the archive was made "
        "with, and the fastest one for a new archive.",
        _RUNTIME.provider,
        choices=(AUTO, *PROVIDERS),
    )
    log_level: str = setting(
        USUAL,
        f"Least severe messages to log: {', '.join(LEVELS)}.",
        "info",
        choices=LEVELS,
        metavar="LEVEL",
    )
    thumbnails: bool = setting(USUAL, "Keep a thumbnail of every ingested slice.", _ENGINE.thumbnails)

    ct_window: Pair = setting(
        GREY_VALUES,
        "Values of CT shown as black and as white, in HU. An archive keeps the window that it was made with.",
        _POLICY.ct_window_hu,
        metavar="LOW HIGH",
        type="two numbers LOW,HIGH with LOW < HIGH",
    )
    percentiles: Percentiles = setting(
        GREY_VALUES,
        "Percentiles of a slice shown as black and as white if it is not CT and its volume has no intensity range. An "
        "archive keeps those that it was made with.",
        (_POLICY.low_percentile, _POLICY.high_percentile),
        metavar="LOW HIGH",
        type="two numbers LOW,HIGH with 0 <= LOW < HIGH <= 100",
    )
    smoothing: float = setting(
        GREY_VALUES,
        "Standard deviation of the Gaussian smoothing after resampling, in pixels of 224; 0: none, as in the paper. An "
        "archive keeps what it was made with.",
        _POLICY.smoothing_px,
        ge=0,
        le=10,
    )

    strict_numerics: bool = setting(
        COMPUTATION,
        "Refuse to start if the provider computes differently from the one that the archive was made with.",
        _RUNTIME.strict,
    )
    threads: int = setting(
        COMPUTATION, "Threads per backbone on the CPU; 0: one per core.", _RUNTIME.threads, ge=0, le=1024
    )
    batch_size: int = setting(COMPUTATION, "Slices embedded at once, at most.", _ENGINE.batch_size, ge=1, le=256)
    load_timeout_s: float = setting(
        COMPUTATION,
        "Time that loading a backbone may take, in seconds, before the start fails; 0: no limit. TensorRT compiles for "
        "minutes.",
        _RUNTIME.load_timeout_s,
        ge=0,
    )

    max_streams: int = setting(LIMITS, "Searches and ingests at the same time.", _SERVER.max_streams, ge=1, le=1000)
    max_message_bytes: int = setting(
        LIMITS,
        "Largest message, in bytes; a slice must fit.",
        _SERVER.max_message_bytes,
        ge=1 << 16,
        le=(1 << 31) - 1,
    )
    disk_reserve_bytes: int = setting(
        LIMITS,
        "Free space on the archive's disk, in bytes, below which nothing is added; half of it is kept for deletions.",
        _ARCHIVE.disk_reserve_bytes,
        ge=0,
    )
    header_timeout_s: float = setting(
        LIMITS,
        "Time that a stream may take to send its header, in seconds.",
        _SERVER.timeouts.header_s,
        ge=0.1,
    )
    idle_timeout_s: float = setting(
        LIMITS,
        "Time that a stream may pause between slices before it is ended, in seconds.",
        _SERVER.timeouts.idle_s,
        ge=0.1,
    )
    grace_s: float = setting(
        LIMITS,
        "Time that calls in progress have to finish when the server is told to stop, in seconds.",
        _SERVER.grace_s,
        ge=0,
    )

    hnsw_m: int = setting(GRAPH, "Edges per node.", _ARCHIVE.m, ge=4, le=256)
    hnsw_ef_construct: int = setting(
        GRAPH, "Candidates considered while building.", _ARCHIVE.ef_construct, ge=4, le=10_000
    )
    hnsw_ef_search: int = setting(
        GRAPH,
        "Candidates considered while searching; more find more of the nearest slices, and cost time.",
        _ARCHIVE.ef_search,
        ge=1,
        le=10_000,
    )
    segment_count: int = setting(
        GRAPH,
        "Segments that the archive aims at; more make it cheaper to add to a large archive.",
        _ARCHIVE.segment_count,
        ge=1,
        le=64,
    )
    indexing_threshold_kb: int = setting(
        GRAPH,
        "Segments with less vector data, in kB, get no graph and are compared exhaustively.",
        _ARCHIVE.indexing_threshold_kb,
        ge=1,
    )
    optimize_after: int = setting(
        GRAPH,
        "Slices without a graph after which it is built even while requests wait.",
        _ARCHIVE.optimize_after,
        ge=1,
    )
    excluded_share_limit: float = setting(
        GRAPH,
        "Share of excluded slices above which a search is exhaustive.",
        _ARCHIVE.excluded_share_limit,
        ge=0,
        le=1,
    )

    lsh: bool = setting(LSH, "Keep the FAISS LSH index beside the graph, for comparison.", _ENGINE.lsh is not None)
    lsh_bits: int = setting(
        LSH,
        "Bits per LSH code; 0: two per dimension of the embedding.",
        _LSH.bits,
        ge=0,
        le=65536,
    )
    lsh_rescore: int = setting(
        LSH,
        "LSH candidates that are compared by cosine; 0: none, as in the paper.",
        _LSH.rescored_candidates,
        ge=0,
        le=1000,
    )

    def for_engine(self) -> EngineSettings:
        """Return the engine's part."""
        return EngineSettings(
            policy=IntensityPolicy(
                ct_window_hu=self.ct_window,
                low_percentile=self.percentiles[0],
                high_percentile=self.percentiles[1],
                smoothing_px=self.smoothing,
            ),
            thumbnails=self.thumbnails,
            runtime=RuntimeSettings(
                provider=self.provider,
                threads=self.threads,
                strict=self.strict_numerics,
                load_timeout_s=self.load_timeout_s,
            ),
            batch_size=self.batch_size,
            archive=ArchiveSettings(
                m=self.hnsw_m,
                ef_construct=self.hnsw_ef_construct,
                ef_search=self.hnsw_ef_search,
                segment_count=self.segment_count,
                indexing_threshold_kb=self.indexing_threshold_kb,
                optimize_after=self.optimize_after,
                excluded_share_limit=self.excluded_share_limit,
                disk_reserve_bytes=self.disk_reserve_bytes,
            ),
            lsh=LshSettings(bits=self.lsh_bits, rescored_candidates=self.lsh_rescore) if self.lsh else None,
        )

    def for_server(self) -> ServerSettings:
        """Return the gRPC server's part."""
        return ServerSettings(
            address=self.listen,
            max_streams=self.max_streams,
            max_message_bytes=self.max_message_bytes,
            grace_s=self.grace_s,
            metrics_address=self.metrics,
            timeouts=StreamTimeouts(header_s=self.header_timeout_s, idle_s=self.idle_timeout_s),
        )
