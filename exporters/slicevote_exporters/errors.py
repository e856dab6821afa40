"""What can go wrong in an export, each as one sentence for the person at the command line."""

from __future__ import annotations


class ExportError(Exception):
    """An export did not come about, or a file is not what it should be. Base of the others."""


class UnknownBackbone(ExportError):
    """No backbone has that name."""


class MissingPackage(ExportError):
    """A Python package that this backbone needs is not installed."""


class WeightsError(ExportError):
    """A checkpoint cannot be read, or does not fit the network."""


class HubUnreachable(ExportError):
    """The weights should come from the internet and do not."""


class PrecisionRefused(ExportError):
    """This backbone is not worth having, or cannot be had, in that precision."""


class ParityFailed(ExportError):
    """The ONNX file does not compute what PyTorch computes."""


class ManifestError(ExportError):
    """A file holds no manifest, or one that cannot be read."""
