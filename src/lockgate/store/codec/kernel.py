"""The hot loops, native where a compiler was, else NumPy. Both write and read the same bytes."""

from __future__ import annotations

import os
import threading
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from lockgate.core.errors import UsageError
from lockgate.store.codec.dtypes import Buffer
from lockgate.store.held import Rooms

_KEPT = 32 * 1024 * 1024  # what a piece of 4 MiB wants, twice; more is given back at once
LEVELS = {"scalar": 0, "avx2": 1, "avx512": 2, "avx512-gather": 3}


class Kernel:
    """One of the twins. Every call may come from any thread; none of them holds the GIL for long.

    Each raises ValueError when what it reads is corrupt or sizes do not match.
    """

    def __init__(self, module: ModuleType, level: int, name: str) -> None:
        self.name = name
        self.rooms = Rooms()
        self._module: Any = module
        self._level = level
        self._lent = threading.local()

    def _scratch(self, size: int, result: int = 0) -> memoryview:
        """Returns this thread's memory to lend for a call on `size` bytes of elements.

        It has room for a result of `result` bytes too, and is not zeroed: pages that no call
        touches cost nothing.
        """
        wanted: int = self._module.scratch_size(size)
        wanted += result if wanted else 0
        if wanted > _KEPT:
            return np.empty(wanted, np.uint8).data
        found: memoryview | None = getattr(self._lent, "memory", None)
        if found is None or len(found) < wanted:
            found = self._lent.memory = np.empty(max(wanted, 1), np.uint8).data
        return found

    def delta_encode(self, data: Buffer, base: Buffer, kind: int, group: int) -> bytes:
        """Returns `data` as differences from `base`, `group` elements (a row, say) to a scale."""
        scratch = self._scratch(len(data), len(data))
        coded: bytes = self._module.delta_encode(data, base, kind, group, scratch, self._level)
        return coded

    def delta_decode(
        self, payload: Buffer, base: Buffer, out: bytearray | memoryview, kind: int
    ) -> None:
        """Writes to `out` what `delta_encode` was given."""
        scratch = self._scratch(len(out))
        self._module.delta_decode(payload, base, out, kind, scratch, self._level)

    def planes_encode(self, data: Buffer, kind: int) -> bytes:
        """Returns `data` as one coded plane for each byte of its elements."""
        scratch = self._scratch(len(data), len(data))
        coded: bytes = self._module.planes_encode(data, kind, scratch, self._level)
        return coded

    def planes_decode(self, payload: Buffer, out: bytearray | memoryview, kind: int) -> None:
        """Writes to `out` what `planes_encode` was given."""
        self._module.planes_decode(payload, out, kind, self._scratch(len(out)), self._level)

    def delta_holds(self, payload: Buffer, base: Buffer, data: Buffer, kind: int) -> bool:
        """Says whether `delta_decode` would write `data`; nothing is written."""
        scratch = self._scratch(len(data))
        return bool(self._module.delta_holds(payload, base, data, kind, scratch, self._level))

    def planes_holds(self, payload: Buffer, data: Buffer, kind: int) -> bool:
        """Says whether `planes_decode` would write `data`; nothing is written."""
        scratch = self._scratch(len(data))
        return bool(self._module.planes_holds(payload, data, kind, scratch, self._level))


@cache
def kernel() -> Kernel:
    """Returns the fastest kernel that is here, or the one that `$LOCKGATE_KERNEL` names.

    Names are `numpy` and those of `LEVELS`. Raises UsageError when it is not here.
    """
    return named_kernel(os.environ.get("LOCKGATE_KERNEL", ""))


def named_kernel(name: str) -> Kernel:
    """Returns the kernel called `name`, the fastest for no name. Raises UsageError."""
    from lockgate.store.codec import twin

    native = _native()
    best = native.best_level() if native else -1
    if name == "numpy" or (not name and native is None):
        return Kernel(twin, 0, "numpy")
    level = LEVELS.get(name, -1) if name else best
    if native is None or not 0 <= level <= best:
        here = ", ".join(["numpy", *(n for n, value in LEVELS.items() if value <= best)])
        raise UsageError(f"there is no kernel {name!r} here", hint=f"LOCKGATE_KERNEL may be {here}")
    return Kernel(native, level, next(n for n, value in LEVELS.items() if value == level))


def _native() -> Any:
    try:
        return import_module("lockgate.store.codec._kernel")
    except ImportError:
        return None
