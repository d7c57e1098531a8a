"""What a checkpoint's pickle builds, read as data: nothing is imported, called or executed.

A pickle is a program. This is no `pickle.Unpickler` with a guard before its `find_class`, but a
reader of its own: it knows the opcodes that PyTorch's pickles consist of (named as in CPython's
`pickletools`, which documents them), a class is a name, a call an inert `Bag` of its arguments.
So there is no allow-list to get wrong, and strangers' classes are no obstacle. `pickletools.genops`
was not taken: it knows opcodes that no checkpoint needs, with costs and errors of their own.

An opcode that is not in the table ends the reading. Each adds a bounded number of bytes to what
is held in memory (a value that is used again is the same value), and their number is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

_MAX_STEPS = 3_000_000
_MAX_TEXT = 1024
_MAX_NUMBER = 16  # bytes of a long integer


@dataclass(frozen=True, slots=True, kw_only=True)
class Global:
    """A class or function, by its name only: `torch.FloatStorage`."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Persistent:
    """Something outside the pickle; what PyTorch says of it is a tuple."""

    what: object


class Bag:
    """Whatever holds other things, with their labels: a dict, a list, an object.

    `name` is the class or function that was called for it, "" for Python's own; the arguments
    come first and without a label, then items and state in the order in which they were set.
    """

    __slots__ = ("inside", "name")

    def __init__(self, name: str = "", values: Iterable[object] = ()) -> None:
        self.name = name
        self.inside: list[tuple[str, object]] = [("", value) for value in values]


class _State:
    """The pickle machine's state: where it reads, its stack with marks, its memory."""

    __slots__ = ("at", "data", "marks", "memo", "outside", "stack")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.outside: list[Persistent] = []

    def take(self, count: int) -> bytes:
        at = self.at
        self.skip(count)
        return self.data[at : self.at]

    def natural(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise ValueError("the pickle ends too early")
        self.at += count

    def top(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("the pickle uses what is not there")
        return self.stack[-1]

    def pop(self) -> object:
        value = self.top()
        self.stack.pop()
        return value

    def bag(self) -> Bag:
        bag = self.top()
        return bag if isinstance(bag, Bag) else Bag()

    def since_mark(self) -> list[object]:
        if not self.marks:
            raise ValueError("the pickle goes back to a mark that is not there")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values


def read_pickle(data: bytes) -> tuple[object, tuple[Persistent, ...]]:
    """Returns what the pickle builds, and everything outside it that it names, in order.

    Values are None, bool, int, str, tuple, `Bag`, `Global`, `Persistent`; bytes, floats and what
    is too long to be a name or a size are None. Raises ValueError for what is no such pickle.
    """
    state = _State(data)
    for _ in range(_MAX_STEPS):
        code = state.natural(1)
        if code == ord("."):
            return state.pop(), tuple(state.outside)
        if code not in _OPERATIONS:
            raise ValueError(f"opcode {code:#x} is not one of a checkpoint's")
        operation, argument = _OPERATIONS[code]
        operation(state, argument)
    raise ValueError("the pickle has more opcodes than a checkpoint needs")


def _mark(state: _State, _: int) -> None:
    state.marks.append(len(state.stack))


def _pop(state: _State, _: int) -> None:
    if state.marks and state.marks[-1] == len(state.stack):
        state.marks.pop()
    else:
        state.pop()


def _pop_mark(state: _State, _: int) -> None:
    state.since_mark()


def _dup(state: _State, _: int) -> None:
    state.stack.append(state.top())


def _skip(state: _State, count: int) -> None:
    state.skip(count)


def _none(state: _State, width: int) -> None:
    state.skip(width)
    state.stack.append(None)


def _boolean(state: _State, value: int) -> None:
    state.stack.append(bool(value))


def _bytes(state: _State, width: int) -> None:
    state.skip(state.natural(width))
    state.stack.append(None)


def _text(state: _State, width: int) -> None:
    length = state.natural(width)
    if length > _MAX_TEXT:
        _none(state, length)
    else:
        state.stack.append(state.take(length).decode("utf-8"))


def _signed(state: _State, width: int) -> None:
    state.stack.append(int.from_bytes(state.take(width), "little", signed=True))


def _natural(state: _State, width: int) -> None:
    state.stack.append(state.natural(width))


def _long(state: _State, width: int) -> None:
    length = state.natural(width)
    if length > _MAX_NUMBER:
        _none(state, length)
    else:
        _signed(state, length)


def _put(state: _State, width: int) -> None:
    state.memo[state.natural(width)] = state.top()


def _memoize(state: _State, _: int) -> None:
    state.memo[len(state.memo)] = state.top()


def _get(state: _State, width: int) -> None:
    place = state.natural(width)
    if place not in state.memo:
        raise ValueError("the pickle remembers what it was not told")
    state.stack.append(state.memo[place])


def _tuple(state: _State, count: int) -> None:
    values = [state.pop() for _ in range(count)]
    state.stack.append(tuple(reversed(values)))


def _tuple_since_mark(state: _State, _: int) -> None:
    state.stack.append(tuple(state.since_mark()))


def _new_bag(state: _State, _: int) -> None:
    state.stack.append(Bag())


def _frozenset(state: _State, _: int) -> None:
    state.stack.append(Bag(values=state.since_mark()))


def _append(state: _State, _: int) -> None:
    value = state.pop()
    inside = state.bag().inside
    inside.append((str(len(inside)), value))


def _appends(state: _State, _: int) -> None:
    values = state.since_mark()
    inside = state.bag().inside
    inside.extend((str(place), value) for place, value in enumerate(values, len(inside)))


def _set_item(state: _State, _: int) -> None:
    value, label = state.pop(), state.pop()
    state.bag().inside.append((_label(label), value))


def _set_items(state: _State, _: int) -> None:
    values = state.since_mark()
    if len(values) % 2:
        raise ValueError("a key in the pickle has no value")
    labels = (_label(label) for label in values[::2])
    state.bag().inside.extend(zip(labels, values[1::2], strict=True))


def _label(label: object) -> str:
    return str(label) if isinstance(label, str | int) else ""


def _global(state: _State, _: int) -> None:
    lines: list[str] = []
    for _line in range(2):
        end = state.data.find(b"\n", state.at, state.at + _MAX_TEXT)
        if end < 0:
            raise ValueError("the name of a class in the pickle has no end")
        lines.append(state.take(end - state.at).decode("utf-8"))
        state.skip(1)
    state.stack.append(Global(name=".".join(lines)))


def _stack_global(state: _State, _: int) -> None:
    name, module = state.pop(), state.pop()
    state.stack.append(Global(name=f"{_label(module)}.{_label(name)}"))


def _call(state: _State, keywords: int) -> None:
    for _ in range(keywords):
        state.pop()
    arguments, called = state.pop(), state.pop()
    name = called.name if isinstance(called, Global) else "?"
    state.stack.append(Bag(name, arguments if isinstance(arguments, tuple) else (arguments,)))


def _build(state: _State, _: int) -> None:
    value = state.pop()
    state.bag().inside.append(("", value))


def _persistent(state: _State, _: int) -> None:
    state.outside.append(Persistent(what=state.pop()))
    state.stack.append(state.outside[-1])


_Operation = tuple[Callable[[_State, int], None], int]
_OPERATIONS: Mapping[int, _Operation] = {
    0x80: (_skip, 1), 0x95: (_skip, 8),  # PROTO, FRAME
    ord("("): (_mark, 0), ord("0"): (_pop, 0), ord("1"): (_pop_mark, 0), ord("2"): (_dup, 0),
    ord("N"): (_none, 0), 0x88: (_boolean, 1), 0x89: (_boolean, 0), ord("G"): (_none, 8),
    ord("J"): (_signed, 4), ord("K"): (_natural, 1), ord("M"): (_natural, 2),
    0x8A: (_long, 1), 0x8B: (_long, 4),  # LONG1, LONG4
    0x8C: (_text, 1), ord("X"): (_text, 4), 0x8D: (_text, 8),  # BINUNICODE
    ord("U"): (_bytes, 1), ord("T"): (_bytes, 4),  # BINSTRING, of Python 2
    ord("C"): (_bytes, 1), ord("B"): (_bytes, 4), 0x8E: (_bytes, 8), 0x96: (_bytes, 8),
    ord("q"): (_put, 1), ord("r"): (_put, 4), 0x94: (_memoize, 0),
    ord("h"): (_get, 1), ord("j"): (_get, 4),
    ord(")"): (_tuple, 0), 0x85: (_tuple, 1), 0x86: (_tuple, 2), 0x87: (_tuple, 3),
    ord("t"): (_tuple_since_mark, 0),
    ord("}"): (_new_bag, 0), ord("]"): (_new_bag, 0), 0x8F: (_new_bag, 0), 0x91: (_frozenset, 0),
    ord("a"): (_append, 0), ord("e"): (_appends, 0), 0x90: (_appends, 0),  # 0x90: ADDITEMS
    ord("s"): (_set_item, 0), ord("u"): (_set_items, 0),
    ord("c"): (_global, 0), 0x93: (_stack_global, 0),
    ord("R"): (_call, 0), 0x81: (_call, 0), 0x92: (_call, 1),  # REDUCE, NEWOBJ, NEWOBJ_EX
    ord("b"): (_build, 0), ord("Q"): (_persistent, 0),
}  # fmt: skip
