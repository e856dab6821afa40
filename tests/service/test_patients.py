"""Which volumes do not vote: the query itself, its series, its study and the other volumes of its patient."""

from __future__ import annotations

from dataclasses import replace

import pytest
from slicevote_client import Client, ServerError

from tests.support.phantoms import phantom_volume
from tests.support.servers import LocalServer

SECRETS = (b"one secret, at least 32 bytes long", b"other secret, at least 32 bytes long")


@pytest.fixture
def server(tmp_path, tiny_backbone):
    with LocalServer(tmp_path / "data", [tiny_backbone]) as server:
        yield server


@pytest.fixture
def volume_of(tmp_path):
    """Volumes that look almost alike, each with what a header says of it."""
    numbers = iter(range(100))

    def make(*, patient="", study="", series=""):
        volume = phantom_volume(tmp_path, next(numbers))
        return replace(volume, patient_id=patient, study_instance_uid=study, series_instance_uid=series)

    return make


def voters(client: Client, query, **options) -> set[str]:
    return {match.volume.volume_id for match in client.search(query, neighbours=20, top_k=100, **options).matches}


def test_series_study_and_patient_of_the_query_do_not_vote(server, volume_of):
    query = volume_of(patient="P", study="1.1", series="1.1.1")
    series, study = volume_of(series="1.1.1"), volume_of(study="1.1", series="1.1.2")
    patient, stranger = volume_of(patient="P", study="1.2", series="1.2.1"), volume_of(patient="Q", study="2.1")
    with Client(server.address, secret=SECRETS[0]) as client:
        for volume in (query, series, study, patient, stranger):
            client.ingest(volume)
        assert voters(client, query) == {stranger.id}
        everybody = {volume.id for volume in (query, series, study, patient, stranger)}
        assert voters(client, query, include_own=True) == everybody
        for index in ("lsh", "exact"):
            assert voters(client, query, index=index) == {stranger.id}


def test_a_client_with_another_secret_is_told(server, volume_of):
    first, second, stranger = volume_of(patient="P"), volume_of(patient="P"), volume_of()
    with Client(server.address, secret=SECRETS[0]) as one, Client(server.address, secret=SECRETS[1]) as other:
        one.ingest(first)
        one.ingest(stranger)
        with pytest.raises(ServerError) as caught:
            other.ingest(second)
        assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "PATIENT_SECRET_DIFFERS")
        assert voters(one, second) == {stranger.id}
        assert not one.search(second).patient_secret_differs
        # Its key matches nobody's, so the patient's other volume votes, and the ranking says why.
        assert voters(other, second) == {first.id, stranger.id}
        assert other.search(second).patient_secret_differs
        assert not other.search(volume_of()).patient_secret_differs
        # Volumes without a patient have no key that could be wrong.
        other.ingest(volume_of())
        # An archive that has been emptied is bound to no secret.
        for record in list(one.volumes()):
            one.delete(record.volume_id)
        other.ingest(second)
        assert not other.search(first).patient_secret_differs


def test_the_secret_is_refused_before_any_slice_is_sent(server, volume_of):
    with Client(server.address, secret=SECRETS[0]) as one, Client(server.address, secret=SECRETS[1]) as other:
        one.ingest(volume_of(patient="P"))
        before = server.engine.backbones[0].embedder.load().slice_count
        with pytest.raises(ServerError):
            other.ingest(volume_of(patient="P"))
        assert server.engine.backbones[0].embedder.load().slice_count == before
