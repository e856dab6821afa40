"""Values of DICOM elements, taken from pydicom's raw elements.

Three small converters instead of pydicom's full machinery, which checks every value against its VR and so costs as
much again as parsing the header. An error names the element and never its value.
"""

import math
import struct
from functools import cache

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

Elements = dict[BaseTag, DataElement | RawDataElement]
_BINARY = {"US": "H", "SS": "h", "UL": "L", "FL": "f", "FD": "d"}


class ElementError(ValueError):
    """An element with a value that it cannot have."""


@cache
def tag_of(keyword: str) -> BaseTag:
    """Gives the tag of a DICOM keyword."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return Tag(tag)


@cache
def _binary_code(keyword: str) -> str | None:
    return _BINARY.get(dictionary_VR(tag_of(keyword)))


def element_name(keyword: str) -> str:
    """Gives keyword and tag of an element, for errors."""
    tag = tag_of(keyword)
    return f"{keyword} ({tag.group:04X},{tag.element:04X})"


def elements_of(dataset: Dataset) -> Elements:
    """Gives the elements of a data set as pydicom parsed them, by tag, not converted."""
    return dict(dataset.items())


def items(owner: Elements, keyword: str) -> list[Elements]:
    """Gives the items of a sequence; none where it is missing."""
    element = owner.get(tag_of(keyword))
    if element is None:
        return []
    if isinstance(element, RawDataElement):
        element = owner[tag_of(keyword)] = convert_raw_data_element(element)  # shared groups are asked for every frame
    return [elements_of(item) for item in element.value or ()]


def text(owner: Elements, keyword: str) -> str:
    """Gives an element's values as text, several of them separated by "/"; empty where it is missing.

    Raises:
        ElementError: It is a number by its VR and cannot be one.
    """
    if _binary_code(keyword):
        return "/".join(f"{number:g}" for number in numbers(owner, keyword))
    return raw_text(owner, tag_of(keyword))


def raw_text(owner: Elements, tag: BaseTag) -> str:
    """Gives a textual element's values, several of them separated by "/"; empty where it is missing."""
    element = owner.get(tag)
    value = element.value if element is not None else None
    if not value:
        return ""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif not isinstance(value, str):
        value = "\\".join(map(str, value))
    return "/".join(part.strip(" \0") for part in value.split("\\")).strip("/")


def numbers(owner: Elements, keyword: str) -> tuple[float, ...]:
    """Gives an element's values as numbers; none where it is missing or empty.

    Raises:
        ElementError: They are no finite numbers; names the element and not its value.
    """
    tag = tag_of(keyword)
    element = owner.get(tag)
    if element is None or element.value is None:
        return ()
    code = _binary_code(keyword)
    try:
        if code is None:
            found = tuple(float(part) for part in raw_text(owner, tag).split("/") if part)
        elif isinstance(element, RawDataElement):
            value = element.value or b""
            order = "<" if element.is_little_endian else ">"
            found = struct.unpack(f"{order}{len(value) // struct.calcsize(order + code)}{code}", value)
        else:
            found = tuple(float(part) for part in ([element.value] if element.VM == 1 else element.value))
    except (ValueError, TypeError, struct.error):
        raise ElementError(f"{element_name(keyword)} is not a number") from None
    if not all(map(math.isfinite, found)):
        raise ElementError(f"{element_name(keyword)} is not finite")
    return found


def integer(owner: Elements, keyword: str, default: int) -> int:
    """Gives an element's first value as a whole number.

    Raises:
        ElementError: It is no number.
    """
    found = numbers(owner, keyword)
    return int(found[0]) if found else default
