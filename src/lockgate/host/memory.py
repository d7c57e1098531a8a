"""The process's memory: freed pieces are kept for the next ones."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_TRIM_BYTES = 512 * 1024 * 1024
_MMAP_BYTES = 32 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Tells the C library not to give freed memory back at once; says whether it understood.

    Pieces of 4 MiB come and go by the thousand; giving each back means that the kernel clears its
    pages again for the next, which costs more than decoding. At most 512 MiB are kept. For
    programs (the command line, the server), not for libraries: it holds for the whole process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    done = mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    return bool(done)
