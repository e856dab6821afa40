"""Addresses of servers as people write them."""

from __future__ import annotations

import re

from slicevote.contract import DEFAULT_PORT

from slicevote_client.errors import InvalidOption

_HOST_AND_PORT = re.compile(r"(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_GRPC_TARGETS = ("dns:", "ipv4:", "ipv6:", "unix:")


def server_address(text: str) -> str:
    """Return the address HOST:PORT that a text means; the port is 50051 where none is given.

    Args:
        text: "localhost", "localhost:50051", "[::1]:50051", or a target with one of gRPC's own schemes, such as
            "dns:///slicevote:50051", which is returned as it is.

    Raises:
        InvalidOption: The text is no address.
    """
    if text.startswith(_GRPC_TARGETS):
        return text
    parts = _HOST_AND_PORT.fullmatch(text)
    port = int(parts["port"] or DEFAULT_PORT) if parts else 0
    if parts is None or not 0 < port < 1 << 16:
        raise InvalidOption(f"'{text}' is not HOST:PORT, such as localhost:{DEFAULT_PORT}")
    return f"{parts['host']}:{port}"
