"""Rule 10: the tail is policed. A ceiling is raised here, with a reason, or not at all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "lockgate"
FILES = sorted(SRC.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef

MAX_FILE = 400
MAX_FUNCTION = 60
MAX_PROTOCOL = 6
MAX_PACKAGE = 10
MAX_LINE = 100
PRAGMA = re.compile(r"  # (type: ignore|noqa).*$")  # ruff counts without them too
NO_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
BIG_PROTOCOLS: dict[str, str] = {}
BIG_PACKAGES: dict[str, str] = {
    "cli": "one file for each group of verbs, beside what finds, prints and draws them",
    "core": "one file for each kind of value; all that is above reads several of them",
}
NOT_FROZEN: dict[str, str] = {  # dataclasses that are no values: "file:class" → why
    "cli/main.py:Context": "what click hands from verb to verb; holds an open console",
    "demo/report.py:Story": "collects what happens while the demo runs",
    "gateway/envoy/ads.py:_Stream": "the state of one open gRPC stream, changed under its lock",
    "gateway/envoy/ads.py:_Watch": "part of such a stream's state",
}
BASES = {
    "Protocol": "a port",
    "BaseModel": "pydantic checks what a stranger sent",
    "click.Group": "click finds verbs by subclass",
    "threading.Thread": "a thread is a subclass",
    "Collector": "prometheus_client asks a collector at each scrape",
    "BaseHTTPRequestHandler": "the standard library's server asks a subclass",
    "ThreadingMixIn": "part of that server",
    "UnixStreamServer": "part of that server",
    "Exception": "the root of the errors",
    "torch.nn.Module": "torch exports and runs modules",
}
OWN_BASES = {
    "LockgateError": "errors",
    "UsageError": "errors",
    "PortError": "errors",
    "GateRefusedError": "errors",
    "_Strict": "pydantic models of one module that share one strictness",
    "_Body": "pydantic models of one module that share one strictness",
    "Training": "the settings that every training step has",
    "Why": "a request body that also has a reason",
    "Shelf": "a protocol that is another one and more",
}
PRINTERS = {
    "cli/output.py": "the one place that prints",
    "observe/scoring/worker.py": "a process of its own; its stdout is its answer",
    "derive/child.py": "a process of its own; its stdout is how far its step is",
    "host/jobs/warden.py": "a process of its own; its stdout is the job's",
    "fleet/runtimes/serve/__main__.py": "a replica's own process; its stderr is the replica's log",
}


@cache
def tree(file: Path) -> ast.Module:
    """Returns a file's syntax tree."""
    return ast.parse(file.read_text("utf-8"))


def name(file: Path) -> str:
    """Returns a file's name for messages: `release/loop.py`."""
    return file.relative_to(SRC).as_posix()


def classes(file: Path) -> Iterator[ast.ClassDef]:
    """Yields every class in a file."""
    yield from (node for node in ast.walk(tree(file)) if isinstance(node, ast.ClassDef))


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yields every function below `node` with its dotted name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield f"{prefix}{child.name}", child
        if isinstance(child, Function | ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            yield from functions(child, prefix)


def check(found: dict[str, int], ceiling: int, allowed: dict[str, str]) -> None:
    """Fails for what is above the ceiling without a reason, and for a reason without a need."""
    above = {what: size for what, size in found.items() if size > ceiling}
    assert not {what: size for what, size in above.items() if what not in allowed}
    assert set(allowed) <= set(above), "an exception that is not needed any more"
    assert all(allowed.values()), "an exception needs a reason"


def test_there_is_something_to_look_at() -> None:
    assert len(FILES) > 80
    assert sum(1 for file in FILES for _ in functions(tree(file))) > 400


def test_files_are_short() -> None:
    lengths = {name(file): len(file.read_text("utf-8").splitlines()) for file in FILES}
    check(lengths, MAX_FILE, LONG_FILES)


def test_functions_are_short() -> None:
    lengths = {
        f"{name(file)}:{title}": (node.end_lineno or node.lineno) - node.lineno + 1
        for file in FILES
        for title, node in functions(tree(file))
    }
    check(lengths, MAX_FUNCTION, LONG_FUNCTIONS)


def test_protocols_are_small() -> None:
    sizes = {
        f"{name(file)}:{cls.name}": sum(isinstance(item, Function) for item in cls.body)
        for file in FILES
        for cls in classes(file)
        if "Protocol" in bases(cls)
    }
    assert len(sizes) > 5
    check(sizes, MAX_PROTOCOL, BIG_PROTOCOLS)


def test_packages_are_small() -> None:
    counts: dict[str, int] = {}
    for file in FILES:
        if file.name != "__init__.py":
            folder = file.parent.relative_to(SRC).as_posix()
            counts[folder] = counts.get(folder, 0) + 1
    check(counts, MAX_PACKAGE, BIG_PACKAGES)


def test_lines_are_short() -> None:
    assert not [
        f"{name(file)}:{number}"
        for file in FILES
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if len(PRAGMA.sub("", line)) > MAX_LINE
    ]


def test_no_module_is_a_drawer() -> None:
    parts = {part for file in FILES for part in (*file.relative_to(SRC).parts[:-1], file.stem)}
    assert not parts & NO_NAMES


def bases(cls: ast.ClassDef) -> list[str]:
    """Returns the names of a class's bases, without type parameters."""
    return [ast.unparse(base).partition("[")[0] for base in cls.bases]


def test_inheritance_is_for_errors_protocols_and_frameworks() -> None:
    used = {
        (base, f"{name(file)}:{cls.name}")
        for file in FILES
        for cls in classes(file)
        for base in bases(cls)
    }
    assert not sorted(pair for pair in used if pair[0] not in BASES | OWN_BASES)


def test_every_base_that_is_allowed_is_used() -> None:
    used = {base for file in FILES for cls in classes(file) for base in bases(cls)}
    assert set(BASES) | set(OWN_BASES) <= used


def test_own_bases_stay_in_their_module() -> None:
    for file in FILES:
        here = {cls.name for cls in classes(file)}
        for cls in classes(file):
            borrowed = set(bases(cls)) & set(OWN_BASES) - here
            assert not borrowed or "Protocol" in bases(cls), f"{name(file)}:{cls.name}"


def dataclass_words(cls: ast.ClassDef) -> set[str] | None:
    """Returns the keywords that are true in a class's `@dataclass(…)`; None when it is none."""
    for decorator in cls.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(called) in ("dataclass", "dataclasses.dataclass"):
            words = decorator.keywords if isinstance(decorator, ast.Call) else []
            return {word.arg or "" for word in words if ast.unparse(word.value) == "True"}
    return None


def test_values_are_frozen_slotted_and_keyword_only() -> None:
    loose = {
        f"{name(file)}:{cls.name}"
        for file in FILES
        for cls in classes(file)
        if (words := dataclass_words(cls)) is not None
        and not {"frozen", "slots", "kw_only"} <= words
    }
    assert not {where for where in loose if where.startswith("core/")}, "core has values only"
    assert loose == set(NOT_FROZEN)
    assert all(NOT_FROZEN.values()), "an exception needs a reason"


def is_public(title: str) -> bool:
    """Says whether no part of a dotted name is private; magic methods speak for themselves."""
    return not any(part.startswith("_") for part in title.split("."))


def documented(file: Path) -> Iterator[tuple[str, ast.AST]]:
    """Yields what must have a docstring: the module, public classes, functions and methods."""
    yield "module", tree(file)
    for node in tree(file).body:
        if isinstance(node, Function | ast.ClassDef) and is_public(node.name):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            for item in node.body:
                if isinstance(item, Function) and is_public(item.name):
                    yield f"{node.name}.{item.name}", item


def test_everything_public_has_a_docstring() -> None:
    bare = [
        f"{name(file)}:{title}"
        for file in FILES
        for title, node in documented(file)
        if not ast.get_docstring(node)  # type: ignore[arg-type]
    ]
    assert not bare


def prints(file: Path) -> bool:
    """Says whether a file calls print, click.echo or writes to stdout or stderr."""
    calls = (node.func for node in ast.walk(tree(file)) if isinstance(node, ast.Call))
    said = {ast.unparse(call) for call in calls}
    return bool(said & {"print", "click.echo", "sys.stdout.write", "sys.stderr.write"})


def test_only_the_output_prints() -> None:
    assert not {name(file) for file in FILES if prints(file)} - set(PRINTERS)


@pytest.mark.parametrize("source", ["print('x')", "sys.stderr.write('x')", "click.echo(1)"])
def test_a_print_would_be_found(tmp_path: Path, source: str) -> None:
    file = tmp_path / "x.py"
    file.write_text(source)
    assert prints(file)
