"""The volumes of an archive in memory: which of their revisions count, and what is listed and counted of them."""

from __future__ import annotations

import bisect
import sys
from collections import Counter
from dataclasses import dataclass

from slicevote_server.archive import points
from slicevote_server.archive.interface import LabelConditions, Page, VolumeRecord

_LAST_CHARACTER = "\U0010ffff"


@dataclass(frozen=True)
class _Volume:
    revision: int
    slice_count: int
    has_patient_key: bool
    tags: tuple[str, ...]


class Catalogue:
    """The volumes whose records are in an archive; starts empty.

    Attributes:
        fingerprint: Exclusive or of all revisions.
        slice_count: Indexed slices of all volumes.
        keyed_count: Volumes that have a patient key.
    """

    def __init__(self) -> None:
        self.fingerprint = 0
        self.slice_count = 0
        self.keyed_count = 0
        self._volumes: dict[str, _Volume] = {}
        self._ids: dict[int, str] = {}
        self._tag_counts: Counter[str] = Counter()
        # The last listing, while no volume comes or goes: the next page of it costs nothing.
        self._listing: tuple[LabelConditions, list[str]] | None = None

    def __len__(self) -> int:
        return len(self._volumes)

    def __contains__(self, volume_id: str) -> bool:
        return volume_id in self._volumes

    def revision_of(self, volume_id: str) -> int | None:
        """Return the revision of a volume that counts; None if there is no such volume."""
        volume = self._volumes.get(volume_id)
        return None if volume is None else volume.revision

    def volume_of(self, revision: int) -> str | None:
        """Return the volume whose slices of this revision count; None if they belong to no volume."""
        return self._ids.get(revision)

    def revisions(self) -> dict[str, int]:
        """Return the revision of every volume, by volume id."""
        return {name: volume.revision for name, volume in self._volumes.items()}

    def enter(self, record: VolumeRecord) -> None:
        """Enter a volume, in place of any of the same name."""
        self.forget(record.volume_id)
        # Many volumes share their labels: one string for each.
        tags = tuple(map(sys.intern, points.tags(record.labels)))
        volume = _Volume(record.revision, len(record.indexed_slices), bool(record.patient_key), tags)
        self._volumes[record.volume_id] = volume
        self._ids[record.revision] = record.volume_id
        self.fingerprint ^= record.revision
        self.slice_count += volume.slice_count
        self.keyed_count += volume.has_patient_key
        self._tag_counts.update(tags)
        self._listing = None

    def forget(self, volume_id: str) -> None:
        """Remove a volume, if it is there."""
        volume = self._volumes.pop(volume_id, None)
        if volume is None:
            return
        del self._ids[volume.revision]
        self.fingerprint ^= volume.revision
        self.slice_count -= volume.slice_count
        self.keyed_count -= volume.has_patient_key
        for tag in volume.tags:
            self._tag_counts[tag] -= 1
            if not self._tag_counts[tag]:
                del self._tag_counts[tag]
        self._listing = None

    def page(self, labels: LabelConditions, *, prefix: str, after: str, limit: int) -> Page:
        """Return a page of volume ids; see `interface.Archive.list_ids`."""
        names = self._listed(labels)
        first = bisect.bisect_left(names, prefix)
        end = bisect.bisect_left(names, prefix + _LAST_CHARACTER) if prefix else len(names)
        start = max(first, bisect.bisect_right(names, after))
        page = tuple(names[start : min(start + limit, end)])
        return Page(page, total_count=end - first, has_more=start + limit < end)

    def label_counts(self) -> dict[str, dict[str, int]]:
        """Return the labels of all volumes, their values, and how many volumes have each."""
        counts: dict[str, dict[str, int]] = {}
        for tag, count in self._tag_counts.items():
            key, value = points.split_tag(tag)
            counts.setdefault(key, {})[value] = count
        return counts

    def _listed(self, labels: LabelConditions) -> list[str]:
        """Return the ids of all volumes with these labels, in order."""
        if self._listing is None or self._listing[0] != labels:
            accepted = [{points.tag(key, value) for value in values} for key, values in labels]
            names = sorted(
                name
                for name, volume in self._volumes.items()
                if not any(tags.isdisjoint(volume.tags) for tags in accepted)
            )
            self._listing = (labels, names)
        return self._listing[1]
