"""The decoder process may die; its parent must not."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from slicevote_volumes import VolumeError, decode_instance
from slicevote_volumes.dicom.decoder_process import DecoderProcess
from slicevote_volumes.errors import DamagedError

JPEG2000 = "1.2.840.10008.1.2.4.90"


def test_the_process_is_started_again_after_it_has_died():
    data = pydicom.dcmread(get_testdata_file("MR_small_RLE.dcm"))
    options = {
        "rows": data.Rows, "columns": data.Columns, "number_of_frames": 1, "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2", "bits_allocated": 16, "bits_stored": 16,
        "pixel_representation": 1, "pixel_keyword": "PixelData", "pixel_vr": "OW",
    }  # fmt: skip
    decoding = DecoderProcess()
    syntax = str(data.file_meta.TransferSyntaxUID)
    first = decoding.decode(syntax, data.PixelData, options)
    decoding._child.kill()
    decoding._child.wait()
    np.testing.assert_array_equal(decoding.decode(syntax, data.PixelData, options), first)
    with pytest.raises(DamagedError):
        decoding.decode(JPEG2000, data.PixelData, options)
    np.testing.assert_array_equal(decoding.decode(syntax, data.PixelData, options), first)
    decoding.close()


@pytest.mark.parametrize("name", ["693_J2KI.dcm", "JPEG-LL.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_damaged_streams_never_end_this_process(name):
    """Whatever the decoders do with them; some crash the process that they run in."""
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("this release of pydicom does not ship the file")
    whole = Path(path).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(25):
        damaged = bytearray(whole)
        for place in generator.integers(len(whole) // 3, len(whole), size=20):
            damaged[place] = int(generator.integers(256))
        with contextlib.suppress(VolumeError):
            decode_instance(bytes(damaged), 0)
    assert decode_instance(whole, 0).pixels.size > 0
