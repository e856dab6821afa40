"""Values of DICOM elements, converted from pydicom's raw elements.

Three small converters replace pydicom's own, which check every value against its value representation (VR) and so cost
as much again as parsing the header. An error names the element and never its value.
"""

import math
import struct
from functools import cache

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from slicevote_volumes.errors import DamagedError, guarded

Elements = dict[BaseTag, DataElement | RawDataElement]
_BINARY = {"US": "H", "SS": "h", "UL": "L", "FL": "f", "FD": "d"}


class ElementError(DamagedError):
    """An element has a value that it cannot have."""


@cache
def tag_of(keyword: str) -> BaseTag:
    """Return the tag of a DICOM keyword."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return Tag(tag)


@cache
def _binary_code(keyword: str) -> str | None:
    return _BINARY.get(dictionary_VR(tag_of(keyword)))


def element_name(tag: BaseTag) -> str:
    """Return keyword and tag of an element, for errors."""
    return f"{keyword_for_tag(tag)} ({tag.group:04X},{tag.element:04X})".lstrip()


def elements_of(dataset: Dataset) -> Elements:
    """Return the elements of a data set by tag, as pydicom parsed them and not converted."""
    return dict(dataset.items())


def items(owner: Elements, keyword: str) -> list[Elements]:
    """Return the items of a sequence; an empty list if it is missing.

    Raises:
        DamagedError: The element is no sequence, or cannot be parsed.
    """
    tag = tag_of(keyword)
    element = owner.get(tag)
    if element is None:
        return []
    if isinstance(element, RawDataElement):
        with guarded(f"{element_name(tag)} is damaged"):
            element = convert_raw_data_element(element)
        owner[tag] = element  # shared groups are asked for every frame
    if element.value is None:
        return []
    if not isinstance(element.value, Sequence):
        raise ElementError(f"{element_name(tag)} is not a sequence")
    return [elements_of(item) for item in element.value]


def text(owner: Elements, keyword: str) -> str:
    """Return an element's values as text, separated by "/"; empty if it is missing.

    Raises:
        ElementError: The element is a number by its VR and its value is not, or it is a sequence.
    """
    if _binary_code(keyword):
        return "/".join(f"{number:g}" for number in numbers(owner, keyword))
    return raw_text(owner, tag_of(keyword))


def raw_text(owner: Elements, tag: BaseTag) -> str:
    """Return a textual element's values, separated by "/"; empty if it is missing.

    Raises:
        ElementError: The element is a sequence.
    """
    element = owner.get(tag)
    value = element.value if element is not None else None
    if not value:
        return ""
    if isinstance(value, Sequence):
        raise ElementError(f"{element_name(tag)} is a sequence instead of text")
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif isinstance(value, MultiValue):
        value = "\\".join(map(str, value))
    return "/".join(part.strip(" \0") for part in str(value).split("\\")).strip("/")


def numbers(owner: Elements, keyword: str) -> tuple[float, ...]:
    """Return an element's values as numbers; an empty tuple if it is missing or empty.

    Raises:
        ElementError: The values are not finite numbers.
    """
    tag = tag_of(keyword)
    element = owner.get(tag)
    if element is None or element.value is None:
        return ()
    code = _binary_code(keyword)
    found: tuple[float, ...]
    if code is None or not isinstance(element, RawDataElement):
        parts = raw_text(owner, tag).split("/")
        try:
            found = tuple(float(part) for part in parts if part)
        except ValueError:
            raise ElementError(f"{element_name(tag)} is not a number") from None
    else:
        data = element.value or b""
        layout = struct.Struct(("<" if element.is_little_endian else ">") + code)
        if len(data) % layout.size:
            raise ElementError(f"{element_name(tag)} is not a number")
        found = tuple(number for (number,) in layout.iter_unpack(data))
    if not all(map(math.isfinite, found)):
        raise ElementError(f"{element_name(tag)} is not finite")
    return found


def integer(owner: Elements, keyword: str, default: int) -> int:
    """Return an element's first value as an integer, or `default` if it is missing or empty.

    Raises:
        ElementError: The value is not a number.
    """
    found = numbers(owner, keyword)
    return int(found[0]) if found else default
