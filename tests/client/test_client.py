"""What the client sends of a volume."""

from __future__ import annotations

import nibabel
import numpy as np
from slicevote_client import Client, read_volumes

from tests.support.phantoms import phantom


def test_the_pixel_spacing_is_sent(scripted, tmp_path):
    # Columns along x, 0.5 mm apart; rows along y, 2 mm apart.
    affine = np.diag([-0.5, -2.0, 5.0, 1.0])
    nibabel.Nifti1Image(np.ascontiguousarray(phantom(1).transpose(2, 1, 0)), affine).to_filename(tmp_path / "a.nii.gz")
    (volume,) = read_volumes(tmp_path / "a.nii.gz", modality="CT")
    with Client(scripted.address) as client:
        client.ingest(volume)
        client.search(volume)
    for header in scripted.headers:
        spacing = header.volume.pixel_spacing
        assert (round(spacing.row_mm, 6), round(spacing.column_mm, 6)) == (2.0, 0.5)


def test_the_labels_of_an_archive(client, tmp_path):
    for name, side in (("a", "north"), ("b", "north"), ("c", "south")):
        stack = np.ascontiguousarray(phantom(ord(name)).transpose(2, 1, 0))
        nibabel.Nifti1Image(stack, np.diag([-1.0, -1.0, 5.0, 1.0])).to_filename(tmp_path / f"{name}.nii.gz")
        (volume,) = read_volumes(tmp_path / f"{name}.nii.gz", modality="CT")
        client.ingest(volume, labels={"site": side})
    assert client.labels() == {"modality": {"CT": 3}, "site": {"north": 2, "south": 1}}
