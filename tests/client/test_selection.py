"""IDs as people type and read them; tables that fit the terminal and are complete elsewhere."""

from __future__ import annotations

import json

import pytest
from rich.cells import cell_len
from slicevote_client.address import server_address
from slicevote_client.commands.selection import short_ids
from slicevote_client.commands.terminal import cut_middle
from slicevote_client.errors import InvalidOption

from tests.support.phantoms import phantom
from tests.support.streams import Peer, header_of, slice_of


@pytest.fixture
def archive(server):
    """Volumes whose IDs share their beginnings."""
    with Peer(server.address) as peer:
        for seed, volume_id in enumerate(("case-0001", "case-0001-a", "case-0002", "other-1")):
            slices = [slice_of(*entry) for entry in enumerate(phantom(seed))]
            peer.ingest(*slices, volume=header_of(volume_id, 12), source=f"/data/{volume_id}")


@pytest.mark.usefixtures("archive")
def test_the_beginning_of_an_id_is_enough(run):
    assert json.loads(run("show", "othe", "--json").stdout)["volume_id"] == "other-1"
    assert json.loads(run("show", "case-0001", "--json").stdout)["volume_id"] == "case-0001"
    ambiguous = run("show", "case-000")
    assert ambiguous.returncode == 1
    assert "several volumes begin with 'case-000': case-0001, case-0001-a, case-0002; give more" in ambiguous.stderr
    too_short = run("delete", "oth")
    assert too_short.returncode == 1
    assert "'oth' is too short; give at least 4 characters" in too_short.stderr
    assert run("delete", "other").stdout.startswith("deleted other-1 ")
    assert len(json.loads(run("volumes", "--json").stdout)) == 3


@pytest.mark.usefixtures("archive")
def test_the_beginning_of_an_id_excludes_the_volume(run, tmp_path, scans):
    document = json.loads(
        run("search", scans / "1.nii.gz", "--exclude", "othe", "--exclude", "case-0002", "--json").stdout
    )
    assert {match["volume"]["volume_id"] for match in document["matches"]} <= {"case-0001", "case-0001-a"}


def test_short_ids_tell_the_listed_ones_apart():
    ids = ["7d0c91ab-1", "7d0c91ab-2", "81", "81aaaaaaaaaa", "99999999-5555", "abc"]
    assert short_ids(ids) == {
        "7d0c91ab-1": "7d0c91ab-1",
        "7d0c91ab-2": "7d0c91ab-2",
        "81": "81",
        "81aaaaaaaaaa": "81aaaaaa",
        "99999999-5555": "99999999",
        "abc": "abc",
    }
    assert short_ids([]) == {}


def test_the_middle_of_a_path_gives_way():
    path = "/data/study-1/patient-7/ct/series-3"
    assert cut_middle(path, 35) == path
    assert cut_middle(path, 24) == "/data/…/ct/series-3"
    assert cut_middle(path, 18) == "/data/…/series-3"
    assert cut_middle(path, 12) == "…/series-3"
    assert cut_middle(path, 6) == "…ies-3"
    assert cut_middle("肝臓/肝臓/肝臓", 6).endswith("肝臓")
    for text in (path, "series", "/", "", "肝臓/肝臓/肝臓", "a/" * 30):
        for width in range(1, 60):
            assert cell_len(cut_middle(text, width)) <= width


def test_an_address_has_the_servers_port_by_default():
    assert server_address("localhost") == "localhost:50051"
    assert server_address("pacs.example:7") == "pacs.example:7"
    assert server_address("[::1]") == "[::1]:50051"
    assert server_address("dns:///slicevote:50051") == "dns:///slicevote:50051"
    for text in ("", "localhost:", "localhost:x", "::1", "http://localhost", "a b", "localhost:99999"):
        with pytest.raises(InvalidOption, match="is not HOST:PORT"):
            server_address(text)
