"""The LSH side index: the paper's lookup, scopes, and how it keeps in step."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from slicevote_server.archive.interface import Scope
from slicevote_server.archive.kinds import open_archive
from slicevote_server.archive.lsh import LshIndex, LshSettings
from slicevote_server.voting import Hit

from tests.support.archives import DIMENSION, IDENTITY, unit, volume


@pytest.fixture
def archive(tmp_path):
    opened = open_archive(tmp_path / "edge", IDENTITY)
    yield opened
    opened.close()


@pytest.fixture
def filled(archive):
    """An archive with 20 volumes of 15 slices, and their vectors by (volume, slice)."""
    generator = np.random.default_rng(0)
    vectors = {}
    for number in range(20):
        record, slices = volume(
            f"v{number:02}",
            unit(generator, 15),
            patient=f"p{number // 2}",
            study=f"1.{number // 4}",
            series=f"1.{number // 4}.{number % 4}",
            parity=str(number % 2),
        )
        archive.put(record, slices)
        vectors.update({(record.volume_id, i): slices.embeddings[i] for i in range(15)})
    return archive, vectors


def hamming(vectors, queries, bits):
    """The definition, independently: signs of FAISS's own random projection, compared bit by bit."""
    hasher = faiss.IndexLSH(DIMENSION, bits, True, False)
    codes = np.unpackbits(hasher.sa_encode(np.stack(list(vectors.values()))), axis=1)
    asked = np.unpackbits(hasher.sa_encode(queries), axis=1)
    return (asked[:, None, :] != codes[None, :, :]).sum(axis=2)


def expected_hits(vectors, queries, bits, neighbours, allowed=lambda name: True):
    names = list(vectors)
    result = []
    for row in hamming(vectors, queries, bits):
        pairs = zip(row.tolist(), names, strict=True)
        order = sorted((distance, *name) for distance, name in pairs if allowed(name[0]))
        result.append([(name, index, 1 - distance / bits) for distance, name, index in order[:neighbours]])
    return result


def told(found):
    return [[(hit.volume_id, hit.slice_index, hit.similarity) for hit in hits] for hits in found.hits]


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("neighbours", [1, 4])
def test_nearest_is_the_least_hamming_distance_with_ties_by_name(filled, tmp_path, bits, neighbours):
    archive, vectors = filled
    index = LshIndex.open(tmp_path / "lsh", archive, LshSettings(bits))
    queries = unit(np.random.default_rng(1), 30)
    assert told(index.nearest(queries, neighbours=neighbours)) == expected_hits(vectors, queries, bits, neighbours)


def test_many_ties_are_all_looked_at(archive, tmp_path):
    (shared,) = unit(np.random.default_rng(2), 1)
    for name in ("m", "c", "x"):
        archive.put(*volume(name, np.repeat(shared[None], 60, axis=0)))
    index = LshIndex.open(tmp_path / "lsh", archive)
    (hits,) = index.nearest(shared[None], neighbours=2).hits
    assert [(hit.volume_id, hit.slice_index) for hit in hits] == [("c", 0), ("c", 1)]


def test_scopes_hold(filled, tmp_path):
    archive, vectors = filled
    index = LshIndex.open(tmp_path / "lsh", archive, LshSettings(32))
    queries = unit(np.random.default_rng(3), 10)
    scope = Scope(
        labels=(("parity", ("1",)),),
        exclude_volume_ids=frozenset({"v03", "v05"}),
        exclude_patient_keys=frozenset({"p4"}),
        exclude_study_instance_uids=frozenset({"1.3"}),
        exclude_series_instance_uids=frozenset({"1.4.1", "1.4.2"}),
    )
    allowed = {f"v{n:02}" for n in range(1, 20, 2)} - {"v03", "v05", "v09", "v13", "v15", "v17"}
    expected = expected_hits(vectors, queries, 32, 3, allowed.__contains__)
    assert told(index.nearest(queries, neighbours=3, scope=scope)) == expected
    nothing = index.nearest(queries, scope=Scope(labels=(("parity", ("2",)),)))
    assert nothing.hits == [[]] * 10


def test_rescoring_compares_the_candidates_by_cosine(filled, tmp_path):
    archive, vectors = filled
    index = LshIndex.open(tmp_path / "lsh", archive, LshSettings(64, rescored_candidates=25))
    queries = unit(np.random.default_rng(4), 20)
    candidates = expected_hits(vectors, queries, 64, 25)
    for query, few, hits in zip(queries, candidates, index.nearest(queries).hits, strict=True):
        cosines = {(name, number): float(query @ vectors[name, number]) for name, number, _ in few}
        best = max(cosines, key=cosines.__getitem__)
        assert [(hit.volume_id, hit.slice_index) for hit in hits] == [best]
        assert hits[0].similarity == pytest.approx(cosines[best], abs=1e-5)


def test_follows_ingest_replacement_and_deletion(archive, tmp_path):
    index = LshIndex.open(tmp_path / "lsh", archive)
    generator = np.random.default_rng(5)
    entries = {name: volume(name, unit(generator, 4)) for name in "abc"}
    entries["b again"] = volume("b", unit(generator, 6))
    for record, slices in entries.values():
        archive.put(record, slices)
        index.add(record, slices)
        assert index.is_in_step()
    index.remove(archive.delete("a"))
    assert index.is_in_step()
    assert index.slice_count == 10
    vectors = np.concatenate([entries["b again"][1].embeddings, entries["c"][1].embeddings])
    found = index.nearest(vectors)
    assert [(hits[0].volume_id, hits[0].slice_index, hits[0].similarity) for hits in found.hits] == [
        *(("b", i, 1.0) for i in range(6)),
        *(("c", i, 1.0) for i in range(4)),
    ]


def test_survives_a_restart_without_asking_the_archive_for_vectors(filled, tmp_path, monkeypatch):
    archive, _ = filled
    index = LshIndex.open(tmp_path / "lsh", archive)
    queries = unit(np.random.default_rng(6), 10)
    before = index.nearest(queries).hits
    index.close()
    monkeypatch.setattr(archive, "slices", lambda record: pytest.fail("the file is there"))
    assert LshIndex.open(tmp_path / "lsh", archive).nearest(queries).hits == before


def test_notices_that_it_is_out_of_step_and_catches_up(filled, tmp_path):
    archive, _ = filled
    index = LshIndex.open(tmp_path / "lsh", archive)
    generator = np.random.default_rng(7)
    record, slices = volume("new", unit(generator, 5))
    archive.put(record, slices)  # behind its back
    archive.delete("v00")
    archive.put(*volume("v01", unit(generator, 3)))
    assert not index.is_in_step()
    hits = [found[0] for found in index.nearest(slices.embeddings).hits]
    assert hits == [Hit("new", record.revision, i, 1.0) for i in range(5)]
    assert index.is_in_step()
    assert index.slice_count == 5 + 3 + 18 * 15


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", None])
def test_a_damaged_file_is_as_good_as_none(filled, tmp_path, damage):
    archive, _ = filled
    LshIndex.open(tmp_path / "lsh", archive).save()
    file = tmp_path / "lsh" / "lsh.npz"
    file.write_bytes(file.read_bytes()[:5000] if damage is None else damage)
    index = LshIndex.open(tmp_path / "lsh", archive)
    assert index.slice_count == 300
    assert index.is_in_step()


def test_other_bits_build_it_anew(filled, tmp_path):
    archive, vectors = filled
    LshIndex.open(tmp_path / "lsh", archive, LshSettings(64)).save()
    index = LshIndex.open(tmp_path / "lsh", archive, LshSettings(128))
    queries = unit(np.random.default_rng(8), 5)
    assert told(index.nearest(queries)) == expected_hits(vectors, queries, 128, 1)


def test_rebuilding_gives_the_same_index(filled, tmp_path):
    archive, _ = filled
    index = LshIndex.open(tmp_path / "lsh", archive)
    queries = unit(np.random.default_rng(9), 10)
    before = index.nearest(queries).hits
    assert index.rebuild() == 300
    assert index.nearest(queries).hits == before
