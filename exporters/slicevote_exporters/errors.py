"""What can go wrong in an export; every message is one sentence for the person at the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ExportError(Exception):
    """An export failed, or a file is not what it should be. Base of the others."""


class UnknownBackbone(ExportError):
    """No backbone has that name."""


class MissingPackage(ExportError):
    """A Python package that this backbone needs is not installed."""


class WeightsError(ExportError):
    """A checkpoint cannot be read, or does not fit the network."""


class HubUnreachable(ExportError):
    """The weights have to be downloaded and cannot be."""


class PrecisionRefused(ExportError):
    """This backbone gains nothing in that precision, or cannot be converted to it."""


class ParityFailed(ExportError):
    """The ONNX file does not compute what PyTorch computes."""


class ManifestError(ExportError):
    """A file has no manifest, or one that cannot be read."""


@contextmanager
def needs_packages(extra: str) -> Iterator[None]:
    """Raise `MissingPackage` for an import of someone else's package that is not installed.

    Args:
        extra: The extra of slicevote that brings the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("slicevote"):
            raise
        raise MissingPackage(
            f"the Python package {package} is not installed; pip install 'slicevote[{extra}]'"
        ) from error
