"""The server: an engine that embeds, indexes and votes, and the gRPC services in front of it."""

from importlib.metadata import version

__version__ = version("slicevote")
