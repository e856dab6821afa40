"""pydicom, kept from telling who the patient is.

pydicom quotes the values that it complains about, in exceptions, warnings and its log. In a damaged file any value may
be the patient's name. So its warnings are turned off in this process, and its exceptions stop at `guarded`.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pydicom.config

from slicevote_volumes.model import VolumeError


class NotAScan(Exception):
    """The file is no DICOM, or a DICOM object that holds no scan."""


class DamagedError(Exception):
    """What a parser or a decoder raised, without its words."""


def silence_pydicom() -> None:
    """Turns off pydicom's warnings and its checks of values, which are what it warns of. Holds for the process."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom\b")


def os_reason(error: OSError) -> str:
    """Says in the system's words why a file cannot be read."""
    return f"cannot be read ({error.strerror or type(error).__name__})"


@contextmanager
def guarded() -> Iterator[None]:
    """Turns whatever a parser or a decoder raises, given bytes that may be anything, into a `DamagedError`.

    Raises:
        DamagedError: Names the kind of exception only; raised outside of the handler, so that no traceback shows more.
    """
    try:
        yield
    except (VolumeError, NotAScan, DamagedError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a parser given damaged bytes raises anything
        kind = type(error).__name__
    else:
        return
    raise DamagedError(kind)
