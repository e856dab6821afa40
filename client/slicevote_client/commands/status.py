"""`slicevote status`: what the server holds and how it runs."""

from __future__ import annotations

from slicevote_client.client import DEFAULT_SERVER, Client
from slicevote_client.commands import printing
from slicevote_client.commands.arguments import JsonOption, ServerOption
from slicevote_client.commands.terminal import say


def status(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Show what the server holds and how it runs."""
    with Client(server) as client:
        document = client.status()
    if as_json:
        printing.print_json(document)
        return
    for line in printing.status_lines(document):
        say(line)
