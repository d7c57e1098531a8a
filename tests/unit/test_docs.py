"""Rule 8: what the code has is on a page, what a page shows is true of the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args, get_origin, get_type_hints
from unittest.mock import MagicMock

import click
import pytest
import yaml
from pydantic import BaseModel

from lockgate.analysis.checks import Signal, find_signal
from lockgate.cli.main import INTERRUPTED, cli
from lockgate.cli.releases import PENDING
from lockgate.core.errors import LockgateError, error_classes
from lockgate.core.events import HeldBecause, Relation, RevertCause, event_classes
from lockgate.fleet.runtimes.serve.metrics import Metrics
from lockgate.gateway.api import GatewayView
from lockgate.ledger.chain import Damage
from lockgate.registry.manifest import FORMAT as MANIFEST_FORMAT
from lockgate.release.planner import default_spec
from lockgate.release.routes import Book
from lockgate.release.spec import ReleaseSpec, parse_spec
from lockgate.server.api.metrics import render
from lockgate.server.app import create_app
from lockgate.server.config import Settings
from lockgate.server.wiring import Control
from lockgate.store.packs import FORMAT as STORE_FORMAT

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [page for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))) if page.is_file()]
SPEC_HINT = "docs/release-spec.md"


def read(name: str) -> str:
    """Returns the text of a page."""
    return (DOCS / name).read_text("utf-8")


def section(name: str, title: str) -> str:
    """Returns what stands below the heading `title`, up to the next one of its level or above."""
    lines = prose(read(name)).splitlines()
    found = [i for i, line in enumerate(lines) if re.fullmatch(rf"#+ {re.escape(title)}", line)]
    assert found, f"docs/{name} has no section {title!r}"
    level = len(lines[found[0]]) - len(lines[found[0]].lstrip("#"))
    body: list[str] = []
    for line in lines[found[0] + 1 :]:
        if re.match(rf"#{{1,{level}}} ", line):
            break
        body.append(line)
    return "\n".join(body)


def prose(text: str) -> str:
    """Returns a page without its fenced blocks, whose comments look like headings."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def code(text: str) -> set[str]:
    """Returns every word that stands in backticks: `--wait`, or the setting of `port = 1`."""
    return {word for span in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[ ,=]+", span)}


def fences(text: str, kind: str) -> Iterator[str]:
    """Yields the fenced blocks of one kind."""
    yield from re.findall(rf"^```{kind}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def missing(wanted: set[str], page: set[str]) -> list[str]:
    """Returns what a page should name and does not."""
    return sorted(wanted - page)


# errors.md


@pytest.mark.parametrize("error", list(error_classes()), ids=lambda error: error.code)
def test_every_error_has_a_section(error: type[LockgateError]) -> None:
    text = section("errors.md", error.code)
    assert f"`{error.__name__}`" in text
    assert f"exit code {error.exit_code}" in text
    assert f"HTTP {error.http_status}" in text


def test_an_error_points_at_its_section() -> None:
    for error in error_classes():
        path, _, anchor = f"docs/errors.md#{error.code}".partition("#")
        assert anchor in anchors(ROOT / path)
    assert LockgateError("x").docs == "docs/errors.md#error"


def test_every_exit_code_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \|", section("errors.md", "Exit codes"), flags=re.MULTILINE)
    known = {error.exit_code for error in error_classes()} | {0, 2, PENDING, INTERRUPTED}
    assert {int(row) for row in rows} == known


def test_every_reason_to_hold_is_explained() -> None:
    assert not missing(set(get_args(HeldBecause)), code(section("errors.md", "held")))


# events.md


@pytest.mark.parametrize("kind", list(event_classes()))
def test_every_event_has_a_section_with_its_fields(kind: str) -> None:
    named = code(section("events.md", kind))
    common = {"release", "model"}  # said once for all events of a stream
    names = {field.name for field in fields(event_classes()[kind])}
    assert not missing(names - common, named), f"docs/events.md, {kind}"


def test_no_event_on_the_page_is_unknown() -> None:
    headings = re.findall(r"^### (\w+)$", read("events.md"), flags=re.MULTILINE)
    assert headings == [name for name in headings if name in event_classes()]


@pytest.mark.parametrize("values", [HeldBecause, RevertCause, Relation, Damage])
def test_every_value_of_an_event_is_named(values: object) -> None:
    assert not missing(set(get_args(values)), code(read("events.md")))


# cli.md


def verbs() -> dict[str, click.Command]:
    """Returns every verb by name."""
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def option_names(parameter: click.Parameter) -> tuple[str, ...]:
    """Returns `--wait`, `--no-wait`; nothing for an argument or a hidden option."""
    named = isinstance(parameter, click.Option) and not parameter.hidden
    return (*parameter.opts, *parameter.secondary_opts) if named else ()


@pytest.mark.parametrize("verb", list(verbs()))
def test_every_verb_has_a_section_with_its_options_and_an_example(verb: str) -> None:
    text = section("cli.md", verb)
    options = {o for p in verbs()[verb].params for o in option_names(p)}
    assert not missing(options, code(text))
    known = {o for c in (cli, *verbs().values()) for p in c.params for o in option_names(p)}
    assert not {word for word in code(text) if word.startswith("--")} - known
    page = read("cli.md")
    assert re.search(rf"^\$ lockgate (--home \S+ )?{verb}\b", page, flags=re.MULTILINE)
    assert re.search(rf"^lockgate {verb}\b", page, flags=re.MULTILINE), "its usage line"


def test_every_argument_is_in_the_usage_line() -> None:
    usages = "\n".join(fences(read("cli.md"), "text"))
    for verb, command in verbs().items():
        lines = [line for line in usages.splitlines() if line.startswith(f"lockgate {verb}")]
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                assert any(str(parameter.name).upper() in line for line in lines), (verb, parameter)


def test_every_global_option_is_on_the_page() -> None:
    options = {option for parameter in cli.params for option in parameter.opts} | {"-h", "--help"}
    assert not missing(options, code(section("cli.md", "Global options")))


# settings.md


def test_every_setting_has_its_default_on_the_page() -> None:
    text = section("settings.md", "config.toml")
    for field in fields(Settings):
        row = re.search(rf"^\| `{field.name}` \| ([^|]*) \|", text, flags=re.MULTILINE)
        assert row, f"docs/settings.md has no row for {field.name}"
        shown = row[1].split(" (")[0].replace("`", "").replace(",", "")
        default = cast("object", field.default)
        wanted = str(default).lower() if isinstance(default, bool) else str(default)
        assert shown.strip() == wanted.removesuffix(".0"), field.name


def test_every_environment_variable_is_on_the_page() -> None:
    pattern = re.compile(r"environ(?:\.get\(|\[)\s*[\"'](\w+)[\"']")
    found = {
        name
        for file in (ROOT / "src" / "lockgate").rglob("*.py")
        for name in pattern.findall(file.read_text("utf-8"))
    }
    theirs = {"USER", "LOGNAME"}  # the system's own, for the actor's name
    assert not missing(found - theirs, code(read("settings.md")))


# metrics.md


def rendered(page: bytes) -> set[str]:
    """Returns the names of a metrics page, without the derived `_created` series."""
    names = re.findall(r"^# TYPE (\w+) ", page.decode(), flags=re.MULTILINE)
    return {name for name in names if not name.endswith("_created")}


def test_every_metric_of_the_server_is_on_the_page() -> None:
    control = SimpleNamespace(
        samples=SimpleNamespace(totals=list),
        gateway=SimpleNamespace(view=lambda: GatewayView(address="http://here")),
        fleet=SimpleNamespace(replicas=list),
        engine=SimpleNamespace(book=Book),
        hooks=SimpleNamespace(places=dict),
    )
    names = rendered(render(cast("Control", control)))
    assert len(names) > 5
    assert not missing(names, code(section("metrics.md", "The server")))


def test_every_metric_of_a_replica_is_on_the_page() -> None:
    names = rendered(Metrics().text())
    assert len(names) > 5
    assert not missing(names, code(section("metrics.md", "A replica")))


def test_no_metric_on_the_page_is_unknown() -> None:
    shown = {name for name in code(read("metrics.md")) if name.startswith("lockgate_")}
    source = (ROOT / "src/lockgate/server/api/metrics.py").read_text("utf-8")
    source += (ROOT / "src/lockgate/fleet/runtimes/serve/metrics.py").read_text("utf-8")
    assert not {name for name in shown if f'"{name.removesuffix("_total")}"' not in source}


# release-spec.md


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields the path of every setting of a spec, as `strategy.bake`."""
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        yield path
        for kind in models_in(field.annotation):
            yield from settings_of(kind, f"{path}.")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the pydantic models in a type: in `X | None`, `tuple[X, ...]`, …"""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for inner in get_args(annotation):
        yield from models_in(inner)


def test_every_setting_of_a_spec_has_a_row_with_an_example() -> None:
    rows = re.findall(r"^\| `([\w.-]+)` \| (.*) \|$", section("release-spec.md", "Settings"),
                      flags=re.MULTILINE)  # fmt: skip
    shown = {name for name, _ in rows}
    wanted = set(settings_of(ReleaseSpec))
    assert {"strategy.blue-green", "checks.floor", "runtime.drain", "approve.before"} <= wanted
    assert shown == wanted
    for name, rest in rows:
        default, unit, meaning, example = (cell.strip() for cell in rest.split("|"))
        assert meaning, f"{name} has no meaning"
        assert "`" in example or "see below" in meaning or "signals" in meaning, (name, unit)
        assert default or "strategy." in name or "checks." in name, f"{name} has no default"


def test_the_signals_on_the_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", section("release-spec.md", "Signals"), flags=re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    signals = [find_signal(name.replace("NN", "95")) for name in names]
    assert {signal.measure for signal in signals} == set(
        get_args(get_type_hints(Signal)["measure"])
    )
    for measure in ("ttft", "latency", "tpot"):
        assert {f"{measure}_mean", f"{measure}_pNN"} <= names


def test_units_of_signals_are_right() -> None:
    text = section("release-spec.md", "Signals")
    for row in re.findall(r"^\| (`.*)\|$", text, flags=re.MULTILINE):
        names, unit, worse, _ = (cell.strip() for cell in row.split(" | "))
        for name in re.findall(r"`(\w+)`", names):
            signal = find_signal(name.replace("NN", "95"))
            assert (signal.unit or "share", signal.worse) == (unit, worse)


def specs() -> list[tuple[str, str]]:
    """Returns every fenced YAML block of a page that is a release spec."""
    found = []
    for page in PAGES:
        for block in fences(page.read_text("utf-8"), "yaml"):
            values = yaml.safe_load(block)
            if isinstance(values, dict) and {"model", "strategy"} & set(values):
                found.append((page.name, block))
    return found


@pytest.mark.parametrize(("page", "block"), specs())
def test_every_spec_on_a_page_parses(page: str, block: str) -> None:
    assert parse_spec(block).model


def test_the_page_shows_a_canary_a_blue_green_and_an_approval() -> None:
    shown = [parse_spec(block) for page, block in specs() if page == "release-spec.md"]
    assert any(spec.strategy.canary and not spec.approve for spec in shown)
    assert any(spec.strategy.blue_green for spec in shown)
    assert any(spec.approve for spec in shown)


def test_the_spec_of_a_release_without_one_is_the_one_on_the_page() -> None:
    (block,) = fences(read("release-spec.md").split("\n## Without a spec\n")[1], "yaml")
    assert parse_spec(block) == default_spec("acme/chat", "v42", "local")


# http-api.md


def routes() -> set[tuple[str, str]]:
    """Returns (method, path) of everything that the server answers."""
    paths = create_app(cast("Control", MagicMock())).openapi()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_every_route_is_on_the_page_and_no_other() -> None:
    text = read("http-api.md")
    shown = set(re.findall(r"^\| (GET|POST|PUT|DELETE) \| `([^`]+)` \|", text, flags=re.MULTILINE))
    code_has = {(method, path) for method, path in routes() if "/v1/" in path}
    assert len(code_has) > 20
    assert shown == code_has
    assert "`GET /health`" in text


# store-format.md


def test_the_formats_on_the_page_are_those_of_the_code() -> None:
    text = read("store-format.md")
    assert STORE_FORMAT.decode().strip() in text
    assert MANIFEST_FORMAT in code(text)


def test_the_manifest_on_the_page_is_sound_and_is_the_version_it_says() -> None:
    from lockgate.core.digests import hex_of
    from lockgate.registry.manifest import digest_of_manifest, parse

    (block,) = fences(read("store-format.md"), "json")
    manifest = parse(block.strip().encode())
    assert hex_of(digest_of_manifest(manifest))[:20] in read("store-format.md")


# every page


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page.read_text("utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_point_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_on_a_page_is_json(page: Path) -> None:
    for block in fences(page.read_text("utf-8"), "json"):
        for line in block.strip().splitlines():
            json.loads(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_options_in_examples_exist(page: Path) -> None:
    known = verbs()
    everywhere = {option for parameter in cli.params for option in parameter.opts}
    for line in re.findall(r"^\$ lockgate (.+)$", page.read_text("utf-8"), flags=re.MULTILINE):
        words = re.sub(r"--(home|server|actor) \S+ ", "", line).split()
        verb = next(word for word in words if not word.startswith("-"))
        assert verb in known, line
        options = {o for p in known[verb].params for o in option_names(p)}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options | everywhere | {"--help"}, line


def test_the_hint_of_a_spec_error_names_a_page_that_exists() -> None:
    assert (ROOT / SPEC_HINT).is_file()
