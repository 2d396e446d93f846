"""Rows that are read from files, arrays, tables and iterators, a batch at a time."""

from jaxem.streams.opening import stream
from jaxem.streams.shuffled import Shuffled

__all__ = ["Shuffled", "stream"]
