"""Which pages of a file are in the kernel's page cache, and asking it to forget them."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

PAGE = mmap.PAGESIZE
_C = ctypes.CDLL(None)
_C.mmap.restype = ctypes.c_void_p
_C.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_C.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_C.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def forget(*files: Path) -> None:
    """Has the kernel forget what nobody holds of them."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def resident(*files: Path) -> int:
    """Bytes of them that are in memory, in whole pages."""
    found = 0
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as opened:
            place = _C.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, opened.fileno(), 0)
        pages = ctypes.create_string_buffer(-(-size // PAGE))
        assert _C.mincore(place, size, pages) == 0
        _C.munmap(place, size)
        found += sum(byte & 1 for byte in pages.raw[: -(-size // PAGE)]) * PAGE
    return found
