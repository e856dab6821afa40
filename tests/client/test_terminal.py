"""What files and archives say is printed as it is, and nothing of it steers the terminal."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from slicevote_client.commands.printing import print_volumes
from slicevote_client.commands.terminal import printable
from slicevote_client.results import VolumeRecord

from tests.support.phantoms import phantom, write_nifti
from tests.support.streams import Peer, header_of, slice_of

MARKUP = ("[/x]", "[ct]", "[bold]b[/bold]", ":smile:", "[link=file:///]l[/link]")
HOSTILE = "a\x1b[2J\x1b]0;title\x07\r\n\x9b31m\x7f\u202e\u2066\udcff"


@pytest.fixture
def marked_archive(server):
    """An archive in which sources and labels hold what looks like markup."""
    with Peer(server.address) as peer:
        for place, text in enumerate(MARKUP):
            slices = [slice_of(*entry) for entry in enumerate(phantom(place + 1))]
            source, labels = f"/data/{text}/scan", {"site": text}
            peer.ingest(*slices, volume=header_of(f"volume-{place}", 12), source=source, labels=labels)


@pytest.mark.usefixtures("marked_archive")
def test_markup_of_the_archive_is_text(run, tmp_path):
    query = write_nifti(tmp_path / "query.nii.gz", phantom(1))
    for words in (("volumes",), ("search", query, "--modality", "CT"), ("show", "volume-0")):
        printed = run(*words)
        assert printed.returncode == 0, (words, printed.stderr)
        shown = MARKUP if words[0] == "volumes" else MARKUP[:1]
        for text in shown:
            assert f"/data/{text}/scan" in printed.stdout
            assert f"site={text}" in printed.stdout


def test_folders_that_look_like_markup_are_named(run, tmp_path):
    folder = tmp_path / "[ct]" / "[/x]"
    folder.mkdir(parents=True)
    path = write_nifti(folder / "[bold].nii.gz", phantom(1))
    ingested = run("ingest", tmp_path / "[ct]", "--modality", "CT")
    assert ingested.returncode == 0, ingested.stderr
    assert str(path) in ingested.stdout
    assert str(path) in run("search", path, "--include-own").stdout
    missing = run("search", folder / "[red]nothing")
    assert missing.returncode == 2
    assert "[/x]/[red]nothing" in missing.stderr


def test_no_file_name_and_no_answer_of_the_server_steers_the_terminal(run, tmp_path):
    (tmp_path / "e\x1b[2J\u202e.nii.gz").write_bytes(b"nothing")
    unreadable = run("ingest", tmp_path)
    assert "e\\x1b[2J\\u202e.nii.gz" in unreadable.stderr
    for result in (
        unreadable,
        run("ingest", tmp_path, "--json"),
        run("search", tmp_path),
        run("search", tmp_path / "no\x1b[2Jthing"),
        run("show", "no\x1b[2Jname"),
        run("volumes", "--backbone", "no\x1b[2Jname"),
    ):
        assert result.returncode != 0
        assert not {"\x1b", "\u202e"} & set(result.stdout + result.stderr)


def test_letters_that_the_locale_does_not_have_are_escaped(run, tmp_path):
    path = write_nifti(tmp_path / "肝臓.nii.gz", phantom(1))
    for words in (("ingest", path, "--modality", "CT"), ("volumes",)):
        printed = run(*words, PYTHONIOENCODING="ascii:strict")
        assert printed.returncode == 0, printed.stderr
        assert "\\u809d\\u81d3.nii.gz" in printed.stdout


def test_what_does_not_print_is_escaped():
    assert printable("Größe 肝臓 [x] \\ ~") == "Größe 肝臓 [x] \\ ~"
    assert printable(HOSTILE) == (r"a\x1b[2J\x1b]0;title\x07\r\n\x9b31m\x7f\u202e\u2066\udcff")


def test_every_cell_of_a_table_is_escaped(capsys):
    texts = [HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, HOSTILE, HOSTILE, HOSTILE, HOSTILE]
    print_volumes([VolumeRecord(*texts, 1, 1, 0, (0.0,), datetime.now(UTC), HOSTILE, None)])
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    # ID, key and value of the label, source.
    assert printed.count(r"\x1b[2J") == 4
