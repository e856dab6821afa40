"""Searches through the door: real server, real client, real files."""

from __future__ import annotations

import itertools
import math
import threading

import numpy as np
import pytest
from slicevote.v1 import sampling_pb2
from slicevote_client import Client, ServerError
from slicevote_server.search import Search
from slicevote_server.session import Session

from tests.support.phantoms import phantom, phantom_volume
from tests.support.streams import Peer, header_of, slice_of


@pytest.fixture
def archive(client: Client, tmp_path):
    """Six phantoms in the archive, by seed."""
    volumes = {seed: phantom_volume(tmp_path, seed, slices=10 + seed) for seed in range(6)}
    for seed, volume in volumes.items():
        client.ingest(volume, labels={"region": "chest" if seed % 2 else "head", "seed": str(seed)})
    return volumes


def test_a_volume_finds_itself(client, archive):
    for volume in archive.values():
        ranking = client.search(volume, include_own=True)
        best = ranking.matches[0]
        assert best.volume.volume_id == volume.id
        assert best.votes == len(volume)
        assert best.share == 1.0
        assert [(hit.query_slice, hit.match_slice) for hit in best.hits] == [(i, i) for i in range(len(volume))]
        assert best.similarity_mean == pytest.approx(1, abs=1e-4)


def test_the_own_volume_does_not_vote_unless_it_is_let(client, archive):
    ranking = client.search(archive[2])
    assert ranking.matches
    assert archive[2].id not in {match.volume.volume_id for match in ranking.matches}


def test_ranking_says_everything(client, archive):
    volume = archive[3]
    ranking = client.search(volume, top_k=2, neighbours=2)
    assert len(ranking.matches) == 2
    assert ranking.planned_slice_count == ranking.received_slice_count == ranking.voting_slice_count == len(volume)
    assert ranking.blank_slice_count == 0
    assert (ranking.backbone, ranking.index) == ("tiny", "hnsw")
    assert not ranking.decided_early
    assert ranking.voted_volume_count >= 2
    best = ranking.matches[0]
    assert best.volume.labels["modality"] == "CT"
    assert best.volume.slice_positions_mm[1] == pytest.approx(5)
    assert best.similarity_sum == pytest.approx(sum(hit.similarity for hit in best.hits))
    assert best.similarity_mean == pytest.approx(best.similarity_sum / len(best.hits))
    for hit in best.hits:
        assert hit.match_position_mm == pytest.approx(best.volume.slice_positions_mm[hit.match_slice])
    assert math.isclose(sum(share.share for share in ranking.label_votes["region"]), 1.0)
    assert {share.value for share in ranking.label_votes["region"]} <= {"head", "chest"}
    assert ranking.times.total_s > 0
    assert ranking.times.embedding_s > 0
    votes = [match.votes for match in ranking.matches]
    assert votes == sorted(votes, reverse=True)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [("all", 15), ("random:4:9", 4), ("random:99", 15), ("nth:5", 3), ("mm:10", 8), ("mm:500", 1), ("even:5", 5)],
)
def test_the_server_plans_and_only_planned_slices_are_sent(client, archive, sampling, expected):
    ranking = client.search(archive[5], sampling=sampling, include_own=True)
    assert ranking.planned_slice_count == ranking.received_slice_count == expected
    assert ranking.matches[0].volume.volume_id == archive[5].id
    assert len(ranking.matches[0].hits) == expected


def test_random_sampling_follows_its_seed(client, archive):
    def chosen(seed):
        ranking = client.search(archive[5], sampling=f"random:5:{seed}", include_own=True)
        return [hit.query_slice for match in ranking.matches for hit in match.hits]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_filters_and_exclusions(client, archive):
    ranking = client.search(archive[1], labels={"region": ["head"]})
    assert {match.volume.labels["region"] for match in ranking.matches} == {"head"}
    assert ranking.exact_because_filtered
    assert sum(match.votes for match in ranking.matches) == len(archive[1])
    others = [volume.id for seed, volume in archive.items() if seed not in (1, 4)]
    ranking = client.search(archive[1], exclude_volumes=others)
    assert [match.volume.volume_id for match in ranking.matches] == [archive[4].id]
    ranking = client.search(archive[1], labels={"seed": ["2", "3"], "region": ["chest"]})
    assert [match.volume.volume_id for match in ranking.matches] == [archive[3].id]
    assert client.search(archive[1], labels={"region": ["pelvis"]}).matches == ()


def test_blank_slices_do_not_vote(client, archive, tmp_path):
    volume = phantom_volume(tmp_path, 77, slices=9, blank=(0, 4, 8))
    result = client.ingest(volume)
    assert (result.volume.indexed_slice_count, result.volume.blank_slice_count) == (6, 3)
    ranking = client.search(volume, include_own=True)
    assert (ranking.voting_slice_count, ranking.blank_slice_count) == (6, 3)
    assert [hit.query_slice for hit in ranking.matches[0].hits] == [1, 2, 3, 5, 6, 7]


def test_a_volume_of_blank_slices_gives_an_empty_ranking(client, archive, tmp_path):
    volume = phantom_volume(tmp_path, 78, slices=3, blank=(0, 1, 2))
    client.ingest(volume)
    ranking = client.search(volume)
    assert ranking.matches == ()
    assert ranking.blank_slice_count == 3


def test_weighted_similarity_and_slicewise(client, archive):
    volume = archive[4]
    weighted = client.search(volume, aggregation="gaussian", include_own=True)
    n = len(volume)
    expected = sum(math.exp(-0.5 * ((i - (n - 1) / 2) / (n / 6)) ** 2) for i in range(n))
    assert weighted.matches[0].votes == pytest.approx(expected)
    by_similarity = client.search(volume, aggregation="similarity")
    assert by_similarity.matches[0].votes == pytest.approx(by_similarity.matches[0].similarity_sum, rel=1e-6)
    slicewise = client.search(volume, aggregation="slice-wise", include_own=True)
    assert slicewise.matches == ()
    assert [(hit.query_slice, hit.volume_id) for hit in slicewise.slice_hits] == [(i, volume.id) for i in range(n)]


def test_late_interaction_orders_by_its_score(client, archive):
    ranking = client.search(archive[2], late_interaction=True, include_own=True, neighbours=40)
    scores = [match.late_interaction_score for match in ranking.matches]
    assert len(scores) > 1
    assert scores == sorted(scores, reverse=True)
    assert ranking.matches[0].volume.volume_id == archive[2].id
    assert scores[0] == pytest.approx(len(archive[2]), rel=1e-3)
    first, last = ranking.matches[0].matched_slab
    assert 0 <= first <= last < len(archive[2])


def test_a_slab_of_the_query(client, archive):
    ranking = client.search(archive[5], slab=(3, 6), include_own=True)
    assert [hit.query_slice for hit in ranking.matches[0].hits] == [3, 4, 5, 6]


def test_stopping_when_decided_does_not_change_the_first_match(client, archive, tmp_path):
    # Long enough for the decision to come while slices are still on their way.
    volume = phantom_volume(tmp_path, 20, slices=150)
    client.ingest(volume)
    whole = client.search(volume, include_own=True)
    early = client.search(volume, include_own=True, stop_when_decided=True)
    assert early.decided_early
    assert early.received_slice_count < whole.received_slice_count
    assert early.matches[0].volume.volume_id == whole.matches[0].volume.volume_id


def test_tallies_come_while_slices_go(client, archive):
    tallies = []
    ranking = client.search(archive[5], include_own=True, on_tally=tallies.append)
    received = [tally.received_slice_count for tally in tallies]
    assert received == sorted(received)
    assert tallies[-1].voting_slice_count == len(archive[5])
    assert tallies[-1].leaders[0] == (archive[5].id, ranking.matches[0].votes)
    assert tallies[-1].decided


def test_tallies_never_go_back_where_a_batch_overtakes_another(client, archive, monkeypatch):
    """The first batch is held in the backbone until the one behind it has been counted."""
    overtaken, calls = threading.Event(), itertools.count()
    embed, add = Session._embed, Search.add

    def hold_the_first(self, slices):
        if next(calls) == 0:
            assert overtaken.wait(240)
        return embed(self, slices)

    def add_and_tell(self, slices):
        tally = add(self, slices)
        overtaken.set()
        return tally

    monkeypatch.setattr(Session, "_embed", hold_the_first)
    monkeypatch.setattr(Search, "add", add_and_tell)
    tallies = []
    client.search(archive[5], include_own=True, on_tally=tallies.append)
    standings = [(tally.received_slice_count, tally.voting_slice_count) for tally in tallies]
    assert standings == sorted(standings)
    assert standings[-1] == (len(archive[5]), len(archive[5]))


def test_the_plan_is_progressive(server, archive):
    pictures = phantom(5, slices=15)
    with Peer(server.address) as peer:
        responses = peer.search(*(slice_of(index, pictures[index]) for index in range(15)), volume=header_of("q", 15))
    plan = list(responses[0].plan.slice_indices)
    assert sorted(plan) == list(range(15))
    assert plan[0] == 7
    assert set(plan[:3]) == {7, 3, 11}
    assert responses[-1].WhichOneof("message") == "ranking"


def test_slices_sent_as_dicom_are_the_slices_sent_as_pixels(server, archive, tmp_path):
    """A client in another language need not decode DICOM."""
    pydicom = pytest.importorskip("pydicom")
    pictures = phantom(5, slices=15)
    messages = []
    for index in range(15):
        path = tmp_path / f"{index}.dcm"
        write_axial_instance(pydicom, path, pictures[index], index)
        message = slice_of(index, pictures[index])
        message.ClearField("content")
        message.dicom_instance = path.read_bytes()
        messages.append(message)
    with Peer(server.address) as peer:
        by_dicom = peer.search(*messages, volume=header_of("q", 15))[-1].ranking
        plain = [slice_of(index, pictures[index]) for index in range(15)]
        by_pixels = peer.search(*plain, volume=header_of("q", 15))[-1].ranking

    def hits_of(ranking):
        hits = [hit for match in ranking.matches for hit in match.hits]
        return [(hit.query_slice, hit.volume_id, hit.match_slice) for hit in hits], [hit.similarity for hit in hits]

    assert hits_of(by_dicom)[0] == hits_of(by_pixels)[0]
    assert hits_of(by_dicom)[1] == pytest.approx(hits_of(by_pixels)[1], abs=1e-6)
    assert by_pixels.matches[0].volume.volume_id == archive[5].id


def write_axial_instance(pydicom, path, picture, index):
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPInstanceUID = f"1.2.3.4.{index}"
    dataset.Modality = "CT"
    dataset.Rows, dataset.Columns = picture.shape
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, 5.0 * index]
    dataset.PixelSpacing = [1, 1]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.PixelData = (picture + 1024).astype("<u2").tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def test_a_replaced_volume_is_never_served_as_a_mixture(server, client, archive, tmp_path):
    """The volume is replaced in the middle of a search; the ranking must show the new one only."""
    volume, pictures = archive[5], phantom(5, slices=15)
    replacement = np.roll(pictures, 5, axis=0)  # the same pictures at other places

    ranking = search_interrupted(server.address, pictures, lambda: ingest_stack(server.address, volume.id, replacement))
    (match,) = ranking.matches
    assert match.volume.volume_id == volume.id
    assert [(hit.query_slice, hit.match_slice) for hit in match.hits] == [(i, (i + 5) % 15) for i in range(15)]


def test_a_volume_deleted_in_the_middle_of_a_search_does_not_vote(server, client, archive):
    volume, pictures = archive[5], phantom(5, slices=15)

    ranking = search_interrupted(server.address, pictures, lambda: client.delete(volume.id))
    assert volume.id not in {match.volume.volume_id for match in ranking.matches}
    assert sum(match.votes for match in ranking.matches) == 15


def search_interrupted(address, pictures, interruption):
    """Searches, and does something else once the first half of the slices has voted."""
    with Peer(address) as peer:
        search = peer.search_slowly(volume=header_of("q", len(pictures)))
        first, second = search.plan.slice_indices[:7], search.plan.slice_indices[7:]
        for index in first:
            search.send(slice_of(index, pictures[index]))
        while next(search.call).tally.voting_slice_count < len(first):
            pass
        interruption()
        for index in second:
            search.send(slice_of(index, pictures[index]))
        return list(search.call)[-1].ranking


def ingest_stack(address, volume_id, pictures):
    with Peer(address) as peer:
        slices = [slice_of(index, picture) for index, picture in enumerate(pictures)]
        peer.ingest(*slices, volume=header_of(volume_id, len(pictures)))


@pytest.mark.parametrize("index", ["hnsw", "lsh", "exact"])
def test_every_index_finds_and_excludes(client, archive, index):
    found = client.search(archive[3], index=index, include_own=True)
    assert found.index == index
    assert found.matches[0].volume.volume_id == archive[3].id
    assert found.matches[0].votes == len(archive[3])
    others = client.search(archive[3], index=index, labels={"region": ["head"]})
    assert {match.volume.labels["region"] for match in others.matches} == {"head"}
    assert archive[3].id not in {match.volume.volume_id for match in client.search(archive[3], index=index).matches}


def test_the_lsh_index_follows_and_its_state_is_shown(client, archive, tmp_path):
    (status,) = client.status()["archives"]
    assert status["lsh"] == {"ready": True, "bits": 128, "rescored_candidates": 0, "slice_count": status["slice_count"]}
    client.delete(archive[3].id)
    ranking = client.search(archive[3], index="lsh", include_own=True)
    assert archive[3].id not in {match.volume.volume_id for match in ranking.matches}


def test_searching_an_empty_archive_is_refused(client, tmp_path):
    with pytest.raises(ServerError, match="archive is empty") as caught:
        client.search(phantom_volume(tmp_path, 1))
    assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "ARCHIVE_EMPTY")


def test_many_searches_at_a_time_answer_as_one_does(server, client, archive):
    from concurrent.futures import ThreadPoolExecutor

    def first(seed):
        with Client(server.address, secret=b"tests") as own:
            return own.search(archive[seed], sampling="random:5", include_own=True).matches[0].volume.volume_id

    seeds = [seed for seed in archive for _ in range(4)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(first, seeds)) == [archive[seed].id for seed in seeds]


def test_sampling_words_reach_the_server():
    from slicevote_client.options import aggregation_message, sampling_message

    assert sampling_message("mm:2.5") == sampling_pb2.Sampling(
        every_millimetres=sampling_pb2.EveryMillimetres(gap_mm=2.5)
    )
    assert aggregation_message("gaussian:0.25").gaussian.sigma == 0.25
    for wrong in ("", "random", "random:x", "mm", "nth:2:3", "every:4"):
        with pytest.raises(ValueError, match="is no sampling; the forms are"):
            sampling_message(wrong)
