"""The contract of an archive, run over every kind of archive."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slicevote_server.archive.interface import Archive, Page, Provenance, Scope
from slicevote_server.archive.kinds import open_archive
from slicevote_server.errors import StartupError

from tests.support.archives import DIMENSION, GRAPHS, IDENTITY, NUMERICS, unit, volume


# Another kind of archive is one more line here: every test below then runs over it, too.
@pytest.fixture(params=["folder"], scope="module")
def new_location(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Gives a function that makes a location where there is no archive yet."""
    return {"folder": lambda: tmp_path_factory.mktemp("archive") / "edge"}[request.param]


@pytest.fixture
def location(new_location) -> Path:
    return new_location()


@pytest.fixture
def archive(location: Path) -> Iterator[Archive]:
    with contextlib.closing(open_archive(location, IDENTITY, GRAPHS)) as opened:
        yield opened


def names(archive: Archive, **listing: object) -> list[str]:
    """All ids of a listing."""
    return list(archive.list_ids(**{"limit": 1000, **listing}).volume_ids)


def test_is_an_archive(archive):
    assert isinstance(archive, Archive)
    assert archive.identity == IDENTITY
    assert archive.engine in ("edge", "cluster")
    assert archive.provenance() == Provenance()


def test_what_is_put_is_there(archive):
    record, slices = volume("v", unit(np.random.default_rng(0), 5), patient="p", spacing=(0.5, 0.75), region="chest")
    assert archive.put(record, slices) is False
    assert archive.records(["v", "w"]) == {"v": record}
    assert names(archive) == ["v"]
    assert archive.thumbnails(record, [1, 4]) == {1: b"picture 1", 4: b"picture 4"}
    kept = archive.slices(record)
    assert kept.indices == slices.indices
    np.testing.assert_allclose(kept.embeddings, slices.embeddings, atol=1e-6)
    occupancy = archive.occupancy()
    assert (occupancy.volume_count, occupancy.slice_count) == (1, 5)
    assert occupancy.disk_bytes > 0


def test_a_volume_without_slices_is_there_too(archive):
    record, slices = volume("blank", np.empty((0, DIMENSION), np.float32))
    archive.put(record, slices)
    assert archive.records(["blank"]) == {"blank": record}
    assert archive.slices(record).embeddings.shape == (0, DIMENSION)


def test_putting_again_replaces(archive):
    generator = np.random.default_rng(1)
    first, second = volume("v", unit(generator, 9)), volume("v", unit(generator, 4))
    archive.put(*first)
    assert archive.put(*second) is True
    assert archive.occupancy().slice_count == 4
    assert archive.records(["v"])["v"].revision == second[0].revision
    found = archive.nearest(np.concatenate([first[1].embeddings, second[1].embeddings]))
    assert {hit.revision for hits in found.hits for hit in hits} == {second[0].revision}


def test_deleting(archive):
    generator = np.random.default_rng(2)
    kept, gone = volume("kept", unit(generator, 3)), volume("gone", unit(generator, 3))
    archive.put(*kept)
    archive.put(*gone)
    assert archive.delete("gone") == gone[0]
    assert archive.delete("gone") is None
    assert names(archive) == ["kept"]
    assert {hit.volume_id for hits in archive.nearest(gone[1].embeddings).hits for hit in hits} == {"kept"}


def test_the_fingerprint_is_that_of_the_revisions(archive):
    generator = np.random.default_rng(7)

    def expected():
        return functools.reduce(operator.xor, archive.revisions().values(), 0)

    assert archive.is_empty()
    assert archive.fingerprint() == 0
    for name in ("a", "b", "a"):
        archive.put(*volume(name, unit(generator, 2)))
        assert archive.fingerprint() == expected() != 0
    archive.delete("a")
    assert archive.fingerprint() == expected()
    assert not archive.is_empty()
    archive.delete("b")
    assert archive.is_empty()
    assert archive.fingerprint() == 0


def test_lists_by_label_in_order(archive):
    generator = np.random.default_rng(3)
    for name, region in (("c", "chest"), ("a", "chest"), ("b", "head")):
        archive.put(*volume(name, unit(generator, 1), region=region))
    assert names(archive) == ["a", "b", "c"]
    assert names(archive, labels=[("region", ("chest",))]) == ["a", "c"]
    assert names(archive, labels=[("region", ("chest", "head")), ("site", ("x",))]) == []
    archive.delete("a")
    assert names(archive, labels=[("region", ("chest",))]) == ["c"]


def test_lists_page_by_page(archive):
    generator = np.random.default_rng(21)
    for name in ("a1", "a2", "a3", "b", "a", "A", "a1-"):
        archive.put(*volume(name, unit(generator, 1), half="upper" if name < "a2" else "lower"))
    assert archive.list_ids(limit=3) == Page(("A", "a", "a1"), total_count=7, has_more=True)
    assert archive.list_ids(after="a1", limit=4) == Page(("a1-", "a2", "a3", "b"), total_count=7, has_more=False)
    assert archive.list_ids(after="a11", limit=1).volume_ids == ("a2",)  # a volume that was there and is deleted
    assert archive.list_ids(after="b", limit=1) == Page((), total_count=7, has_more=False)
    assert archive.list_ids(prefix="a", limit=4) == Page(("a", "a1", "a1-", "a2"), total_count=5, has_more=True)
    assert archive.list_ids(prefix="a", after="a2", limit=4) == Page(("a3",), total_count=5, has_more=False)
    assert archive.list_ids(prefix="a1-", limit=1) == Page(("a1-",), total_count=1, has_more=False)
    assert archive.list_ids(prefix="c", limit=1) == Page((), total_count=0, has_more=False)
    upper = [("half", ("upper",))]
    assert archive.list_ids(upper, prefix="a", limit=2) == Page(("a", "a1"), total_count=3, has_more=True)
    assert archive.list_ids(upper, prefix="a", after="a1", limit=2) == Page(("a1-",), total_count=3, has_more=False)


def test_counts_the_values_of_labels(archive):
    generator = np.random.default_rng(22)
    assert archive.label_counts() == {}
    given = {"a": "x=y", "b": "x", "c": "=", "d": "x=y", "e": "[x]: y"}
    for name, value in given.items():
        archive.put(*volume(name, unit(generator, 2), site=value, **({"series.no": "1"} if name < "c" else {})))
    archive.put(*volume("e", unit(generator, 2), site="x"))
    archive.delete("d")
    assert archive.label_counts() == {"site": {"x=y": 1, "x": 2, "=": 1}, "series.no": {"1": 2}}
    assert names(archive, labels=[("site", ("x=y",))]) == ["a"]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("optimized", [False, True])
def test_nearest_agrees_with_brute_force(archive, exact, optimized):
    generator = np.random.default_rng(4)
    put = [volume(f"v{number:02}", unit(generator, 30)) for number in range(20)]
    for entry in put:
        archive.put(*entry)
    if optimized:
        archive.optimize()
        assert archive.occupancy().unindexed_slice_count == 0
    queries = unit(generator, 40)
    found = archive.nearest(queries, neighbours=3, exact=exact)
    everything = np.concatenate([slices.embeddings for _, slices in put])
    cosines = queries @ everything.T
    order = np.argsort(-cosines, axis=1)[:, :3]
    expected = [[(f"v{place // 30:02}", place % 30) for place in row] for row in order.tolist()]
    assert [[(hit.volume_id, hit.slice_index) for hit in hits] for hits in found.hits] == expected
    assert [hits[0].similarity for hits in found.hits] == pytest.approx(cosines.max(axis=1).tolist(), abs=1e-5)
    assert found.exact is exact


@pytest.mark.parametrize("exact", [False, True])
def test_ties_go_to_the_lower_volume_and_the_lower_slice(archive, exact):
    generator = np.random.default_rng(5)
    (shared,) = unit(generator, 1)
    # The same slice in many places, more than the first look takes in; put in an order that is not the names'.
    for name in ("m", "z", "b", "k", "t", "c", "q"):
        embeddings = unit(generator, 6)
        embeddings[[2, 4]] = shared
        archive.put(*volume(name, embeddings))
    archive.optimize()
    (hits,) = archive.nearest(shared[None], neighbours=3, exact=exact).hits
    assert [(hit.volume_id, hit.slice_index) for hit in hits] == [("b", 2), ("b", 4), ("c", 2)]


def test_more_neighbours_than_slices(archive):
    record, slices = volume("v", unit(np.random.default_rng(6), 3))
    archive.put(record, slices)
    (hits,) = archive.nearest(slices.embeddings[:1], neighbours=10).hits
    assert len(hits) == 3


def test_scopes_lose_no_recall(archive):
    """A label that cuts the query's neighbourhood out of the graph: every query must still find what there is."""
    generator = np.random.default_rng(7)
    centre = unit(generator, 1)
    near = centre + 0.05 * unit(generator, 400)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    far = -centre + 0.3 * unit(generator, 60)
    far = (far / np.linalg.norm(far, axis=1, keepdims=True)).astype(np.float32)
    for number in range(10):
        archive.put(*volume(f"near{number}", near[40 * number : 40 * (number + 1)].astype(np.float32), modality="MR"))
    for number in range(3):
        archive.put(*volume(f"far{number}", far[20 * number : 20 * (number + 1)], modality="CT", patient=f"p{number}"))
    archive.optimize()
    queries = near[::8].astype(np.float32)
    by_label = archive.nearest(queries, scope=Scope(labels=(("modality", ("CT",)),)))
    assert by_label.exact
    expected = (queries @ far.T).max(axis=1)
    assert [hits[0].similarity for hits in by_label.hits] == pytest.approx(expected.tolist(), abs=1e-5)
    excluded = Scope(
        exclude_volume_ids=frozenset({f"near{n}" for n in range(10)}), exclude_patient_keys=frozenset({"p0", "p1"})
    )
    by_exclusion = archive.nearest(queries, scope=excluded)
    assert {hit.volume_id for hits in by_exclusion.hits for hit in hits} == {"far2"}
    assert all(by_exclusion.hits)


@pytest.mark.parametrize("kind", ["study", "series"])
def test_a_study_or_a_series_is_excluded_whole(archive, kind):
    generator = np.random.default_rng(24)
    uids = {"a": "1.2", "b": "1.2", "c": "1.20", "d": ""}
    put = {name: volume(name, unit(generator, 12), **{kind: uid}) for name, uid in uids.items()}
    for entry in put.values():
        archive.put(*entry)
    archive.optimize()
    queries = np.concatenate([slices.embeddings for _, slices in put.values()])
    excluded = Scope(**{f"exclude_{kind}_instance_uids": frozenset({"1.2", "1.3"})})
    found = archive.nearest(queries, scope=excluded)
    assert {hits[0].volume_id for hits in found.hits} == {"c", "d"}
    assert found.exact  # half of the archive is excluded
    of_own = archive.nearest(queries, scope=Scope(**{f"exclude_{kind}_instance_uids": frozenset({"9"})}))
    assert [hits[0].volume_id for hits in of_own.hits] == [name for name in put for _ in range(12)]
    assert not of_own.exact


def test_excluding_ones_own_volume_keeps_the_graph(archive):
    generator = np.random.default_rng(8)
    for number in range(40):
        archive.put(*volume(f"v{number:02}", unit(generator, 10)))
    archive.optimize()
    found = archive.nearest(unit(generator, 5), scope=Scope(exclude_volume_ids=frozenset({"v07"})))
    assert not found.exact
    assert all(hit.volume_id != "v07" for hits in found.hits for hit in hits)


def test_nothing_to_find(archive):
    assert archive.nearest(unit(np.random.default_rng(9), 2)).hits == [[], []]


def test_refuses_what_would_stay_in_its_log(archive):
    record, slices = volume("v", unit(np.random.default_rng(10), 2))
    broken = slices.embeddings.copy()
    broken[0, 0] = np.nan
    for embeddings in (broken, slices.embeddings[:, :-1]):
        with pytest.raises(ValueError, match="finite"):
            archive.put(record, dataclasses.replace(slices, embeddings=embeddings))
    assert names(archive) == []


def test_everything_is_there_after_opening_again(location):
    record, slices = volume("v", unit(np.random.default_rng(11), 7), spacing=(0.7, 0.7), given={"site": "x=y"})
    with contextlib.closing(open_archive(location, IDENTITY, GRAPHS)) as archive:
        archive.put(record, slices)
    for identity in (IDENTITY, None):
        with contextlib.closing(open_archive(location, identity, GRAPHS)) as archive:
            assert archive.identity == IDENTITY
            assert archive.records(["v"]) == {"v": record}
            np.testing.assert_allclose(archive.slices(record).embeddings, slices.embeddings, atol=1e-6)


def test_provenance_is_that_of_the_first_volumes(location):
    """What the vectors and the patient keys were made with is recorded once, and binds no longer than its volumes."""
    generator = np.random.default_rng(23)
    first, other = Provenance(NUMERICS, "0" * 16), Provenance(dataclasses.replace(NUMERICS, precision="bf16"), "f" * 16)
    with contextlib.closing(open_archive(location, IDENTITY, GRAPHS)) as archive:
        archive.record_provenance(other)
        assert archive.provenance() == Provenance()
        archive.record_provenance(Provenance(NUMERICS))
        archive.put(*volume("no patient", unit(generator, 2)))
        assert archive.provenance() == Provenance(NUMERICS)
        archive.record_provenance(first)
        archive.put(*volume("patient", unit(generator, 2), patient="p"))
        archive.record_provenance(other)
        assert archive.provenance() == first
    with contextlib.closing(open_archive(location, IDENTITY, GRAPHS)) as archive:
        assert archive.provenance() == first
        archive.delete("patient")
        assert archive.provenance() == Provenance(NUMERICS)
        archive.delete("no patient")
        assert archive.provenance() == Provenance()
        archive.record_provenance(other)
        archive.put(*volume("patient", unit(generator, 2), patient="p"))
        assert archive.provenance() == other


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights_sha256": "1" * 64}, "weights sha256"),
        ({"backbone": "other"}, "backbone"),
        ({"intensity_policy": {"version": 2}}, "intensity policy"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_refuses_an_archive_made_with_something_else(location, change, named):
    open_archive(location, IDENTITY).close()
    with pytest.raises(StartupError, match=f"made with something else.*{named}"):
        open_archive(location, dataclasses.replace(IDENTITY, **change))
    open_archive(location, IDENTITY).close()


class Reference:
    """An archive of a few lines: a dictionary and one matrix product."""

    def __init__(self) -> None:
        self.volumes = {}

    def put(self, record, slices) -> bool:
        replaced = record.volume_id in self.volumes
        self.volumes[record.volume_id] = (record, slices)
        return replaced

    def delete(self, name):
        return self.volumes.pop(name, (None, None))[0]

    def list_ids(self, labels, prefix, after, limit) -> Page:
        listed = [name for name in sorted(self.volumes) if name.startswith(prefix) and self.has(name, labels)]
        rest = [name for name in listed if name > after]
        return Page(tuple(rest[:limit]), len(listed), len(rest) > limit)

    def has(self, name, labels) -> bool:
        return all(self.volumes[name][0].labels.get(key) in values for key, values in labels)

    def label_counts(self):
        counts = {}
        for record, _ in self.volumes.values():
            for key, value in record.labels.items():
                values = counts.setdefault(key, {})
                values[value] = values.get(value, 0) + 1
        return counts

    def inside(self, name, scope) -> bool:
        record, _ = self.volumes[name]
        return self.has(name, scope.labels) and not (
            name in scope.exclude_volume_ids
            or record.patient_key in scope.exclude_patient_keys
            or record.study_instance_uid in scope.exclude_study_instance_uids
            or record.series_instance_uid in scope.exclude_series_instance_uids
        )

    def nearest(self, queries, neighbours, scope):
        slices = [
            (name, index, vector)
            for name, (_, entry) in self.volumes.items()
            if self.inside(name, scope)
            for index, vector in zip(entry.indices, entry.embeddings, strict=True)
        ]
        hits = []
        for query in queries:
            ranked = sorted((-float(query @ vector), name, index) for name, index, vector in slices)
            hits.append([(name, index) for _, name, index in ranked[:neighbours]])
        return hits


NAMES = st.sampled_from(["a", "a1", "b", "b-2", "c"])
FEW = st.sampled_from(["", "1", "2", "3"])
SITES = st.sampled_from(["x", "y", "x=y"])
PUTS = st.tuples(st.just("put"), NAMES, st.integers(0, 6), FEW, FEW, FEW, SITES)
DELETES = st.tuples(st.just("delete"), NAMES)
LABELS = st.lists(SITES, min_size=1, max_size=2).map(lambda values: (("site", tuple(values)),)) | st.just(())
SCOPES = st.builds(
    Scope,
    labels=LABELS,
    exclude_volume_ids=st.frozensets(NAMES, max_size=2),
    exclude_patient_keys=st.frozensets(st.sampled_from(["1", "2"])),
    exclude_study_instance_uids=st.frozensets(st.sampled_from(["1", "2"])),
    exclude_series_instance_uids=st.frozensets(st.sampled_from(["1", "2"])),
)
LISTINGS = st.tuples(LABELS, st.sampled_from(["", "a", "b-"]), st.sampled_from(["", "a", "b", "z"]), st.integers(1, 4))


@pytest.fixture(scope="module")
def kept(new_location) -> Iterator[Archive]:
    """An archive that several examples use, one after the other."""
    with contextlib.closing(open_archive(new_location(), IDENTITY, GRAPHS)) as opened:
        yield opened


@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.lists(PUTS | DELETES | st.tuples(st.just("optimize")), min_size=1, max_size=12),
    listings=st.lists(LISTINGS, min_size=2, max_size=4),
    scopes=st.lists(SCOPES, min_size=2, max_size=4),
    neighbours=st.integers(1, 4),
)
@settings(max_examples=15)
def test_agrees_with_a_reference_of_a_few_lines(kept, seed, steps, listings, scopes, neighbours):
    generator, reference = np.random.default_rng(seed), Reference()
    for name in names(kept):
        kept.delete(name)
    for kind, *arguments in steps:
        if kind == "put":
            name, count, patient, study, series, site = arguments
            entry = volume(name, unit(generator, count), patient=patient, study=study, series=series, site=site)
            assert kept.put(*entry) == reference.put(*entry)
        elif kind == "delete":
            assert kept.delete(*arguments) == reference.delete(*arguments)
        else:
            kept.optimize()
    assert kept.is_empty() is not bool(reference.volumes)
    assert kept.records(["a", "b", "c", "z"]) == {
        name: reference.volumes[name][0] for name in "abc" if name in reference.volumes
    }
    assert kept.revisions() == {name: record.revision for name, (record, _) in reference.volumes.items()}
    assert kept.occupancy().slice_count == sum(len(slices.indices) for _, slices in reference.volumes.values())
    assert kept.label_counts() == reference.label_counts()
    for labels, prefix, after, limit in listings:
        found = kept.list_ids(labels, prefix=prefix, after=after, limit=limit)
        assert found == reference.list_ids(labels, prefix, after, limit)
    queries = unit(generator, 3)
    for scope in scopes:
        for exact in (False, True):
            found = kept.nearest(queries, neighbours=neighbours, scope=scope, exact=exact).hits
            told = [[(hit.volume_id, hit.slice_index) for hit in hits] for hits in found]
            assert told == reference.nearest(queries, neighbours, scope)
