"""Configurations of glass-forming liquids and the file formats that hold them."""

from glassconv.data.configuration import Configuration
from glassconv.data.formats import read
from glassconv.data.hdf5 import write_hdf5
from glassconv.data.sample import sample

__all__ = ["Configuration", "read", "sample", "write_hdf5"]
