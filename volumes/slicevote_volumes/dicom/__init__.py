"""DICOM instances, from wherever they can be opened, assembled into volumes.

Importing this package turns off pydicom's warnings in the process: they quote values, and so patients.
"""

import logging
import warnings

import pydicom.config

# Checks of values are what pydicom warns of.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom\b")
