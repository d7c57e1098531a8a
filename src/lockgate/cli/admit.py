"""The verb that judges versions before they get any traffic: admit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import click

from lockgate.cli.main import Context
from lockgate.cli.versions import reference
from lockgate.core.codec import from_json, to_json
from lockgate.core.errors import NotFoundError, UsageError
from lockgate.core.events import VersionJudged
from lockgate.core.names import check_target, route_name, split_reference

if TYPE_CHECKING:
    from lockgate.client.client import Client
    from lockgate.derive.pipeline import Gated
    from lockgate.derive.work import Workplace
    from lockgate.gates.admit import Admission, Chosen
    from lockgate.gates.api import Asked, Subject

Json = dict[str, Any]


@click.command()
@click.argument("model")
@click.argument("version", required=False)
@click.option("--to", "target", default="local", help="Where it is meant to serve [local].")
@click.option("--gates", "file", type=click.Path(path_type=Path), default=Path("gates.yaml"),
              help="The file that lists them [gates.yaml].")  # fmt: skip
@click.option("--baseline", metavar="MODEL:VERSION",
              help="What to compare with [what serves at the target].")  # fmt: skip
@click.option("--at", metavar="URL", help="Where it is served already, to be asked there.")
@click.option("--baseline-at", metavar="URL", help="Where what it is compared with is served.")
@click.option("--fresh", is_flag=True, help="Ask again what was asked before.")
@click.option("--approve", metavar="REASON", help="Say yes yourself, for the record, first.")
@click.option("--card", type=click.Path(path_type=Path), help="Write a model card to this file.")
@click.pass_obj
def admit(
    ctx: Context,
    model: str,
    version: str | None,
    *,
    target: str,
    file: Path,
    baseline: str | None,
    at: str | None,
    baseline_at: str | None,
    fresh: bool,
    approve: str | None,
    card: Path | None,
) -> None:
    """Judge by gates whether a VERSION of MODEL is worth releasing.

    Exit code 0: it passed. 10: refused. 15: it has to be trained better. 12: something is missing,
    an approval or more rows.
    """
    from lockgate.gates.admit import parse_gates, refusal

    name, chosen = reference(model, version)
    gates = parse_gates(_text(file))
    with ctx.client() as client:
        if approve is not None:
            _approve(ctx, client, _subject(client, name, chosen), check_target(target), approve)
        subject = _served_at(_subject(client, name, chosen), at)
        other = _served_at(_baseline(client, subject, target, baseline), baseline_at)
        admission = _judge(ctx, client, gates, subject, other, target, file.parent, fresh=fresh)
        if card is not None:
            _write_card(ctx, client, card, subject, admission, target)
    _show(ctx, subject, other, target, admission)
    error = refusal(admission, str(subject), target)
    if error is not None:
        raise error
    ctx.output.hint(f"lockgate release {name} v{subject.number} --to {target}")


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the gates {file} can't be read: {error}", hint="--gates names the file"
        ) from error


def _subject(client: Client, model: str, version: str) -> Subject:
    from lockgate.gates.api import Subject

    view = client.get(f"/models/{model}/versions/{version}")
    judged = tuple(from_json(VersionJudged, item) for item in view["judged"])
    return Subject(model=model, number=view["number"], digest=view["digest"],
                   size=view["bytes_total"], judged=judged)  # fmt: skip


@overload
def _served_at(subject: Subject, url: str | None) -> Subject: ...
@overload
def _served_at(subject: Subject | None, url: str | None) -> Subject | None: ...
def _served_at(subject: Subject | None, url: str | None) -> Subject | None:
    """Returns the version, served at `url` where there is one; raises UsageError."""
    from lockgate.client.elsewhere import check_address

    if url is None:
        return subject
    if subject is None:
        raise UsageError("nothing serves there that could be compared", hint="--baseline names it")
    return replace(subject, at=check_address(url))


def _baseline(
    client: Client, subject: Subject, target: str, asked_for: str | None
) -> Subject | None:
    """Returns what to compare with: what is asked for, or what serves the model at the target."""
    if asked_for is not None:
        model, version = split_reference(asked_for)
        if version is None:
            raise UsageError(f"which version of {model}?", hint=f"write it as {model}:v1")
        return _subject(client, model, version)
    route = route_name(subject.model, check_target(target))
    for serving in client.get("/status")["routes"]:
        if serving["name"] == route and serving.get("serving"):
            return _subject(client, subject.model, serving["serving"]["digest"])
    return None


def _judge(
    ctx: Context, client: Client, gates: list[Chosen], subject: Subject, other: Subject | None,
    target: str, beside: Path, *, fresh: bool = False,
) -> Admission:  # fmt: skip
    from lockgate.client.derived import record
    from lockgate.gates.admit import admit as recipe

    with _asking(ctx, client, subject, other, target, beside) as asked:
        return recipe(gates, asked, lambda event: record(client, event), fresh=fresh)


@contextmanager
def _asking(
    ctx: Context, client: Client, subject: Subject, other: Subject | None, target: str,
    beside: Path,
) -> Iterator[Asked]:  # fmt: skip
    """Gives what gates may look at: replicas, files, scorers; all is ended and removed after."""
    from lockgate.client.served import Replicas
    from lockgate.derive.work import Workplace
    from lockgate.gates.api import Asked
    from lockgate.host.jobs.local import LocalJobs
    from lockgate.observe.scoring.worker import Worker

    worker, lock = Worker(), threading.Lock()

    def scores(
        definition: Mapping[str, Any], request: Mapping[str, Any], answer: Mapping[str, Any]
    ) -> float | None:
        with lock:
            return worker.score(definition, request, answer)

    with ctx.output.progress() as report, ctx.output.stepping() as step:
        place = Workplace(
            folder=ctx.home.resolve() / "derive", jobs=LocalJobs(), objects=client.objects(),
            report=report,
        )  # fmt: skip
        with Replicas(place) as replicas:
            try:
                yield Asked(
                    candidate=subject, baseline=other, target=target, serve=replicas.serve,
                    files=_files(client, place, beside), scores=scores, tell=step,
                    now=client.clock(),
                )  # fmt: skip
            finally:
                worker.close()
        place.tidy()


def _files(client: Client, place: Workplace, beside: Path) -> Callable[[str], Path]:
    """Returns what finds a file: beside the gates', or in a stored version."""

    def find(name: str) -> Path:
        head, colon, rest = name.partition(":")
        if not colon or "/" not in head:
            path = beside / name
            if not path.is_file():
                raise NotFoundError(f"there is no file {path}")
            return path
        version, _, inner = rest.partition("/")
        digest = client.get(f"/models/{head}/versions/{version}")["digest"]
        folder = place.input(digest)
        path = folder / inner
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise NotFoundError(f"{head} {version} has no file {inner!r}")
        return path

    return find


def _approve(ctx: Context, client: Client, subject: Subject, target: str, reason: str) -> None:
    from lockgate.client.derived import record
    from lockgate.gates.approval import approved

    now = client.clock()
    record(client, approved(subject, target, by=ctx.actor, reason=reason, now=now))


def admitting(ctx: Context, client: Client, beside: Path) -> Callable[[Gated], None]:
    """Returns what a pipeline asks at its gate stages."""
    from lockgate.gates.admit import choose, parse_gates, refusal

    def judge(gated: Gated) -> None:
        listed = gated.gates
        gates = parse_gates(_text(beside / listed)) if isinstance(listed, str) else choose(listed)
        subject = _subject(client, gated.version.model, gated.version.digest)
        other = _baseline(client, subject, gated.target, None)
        folder = (beside / listed).parent if isinstance(listed, str) else beside
        admission = _judge(ctx, client, gates, subject, other, gated.target, folder)
        _show(ctx, subject, other, gated.target, admission, quiet=True)
        error = refusal(admission, str(subject), gated.target)
        if error is not None:
            raise error

    return judge


def _show(
    ctx: Context, subject: Subject, other: Subject | None, target: str, admission: Admission,
    *, quiet: bool = False,
) -> None:  # fmt: skip
    view = {
        "model": subject.model, "version": f"v{subject.number}", "target": target,
        "baseline": str(other) if other else None, "outcome": admission.outcome,
        "gates": [{"gate": a.gate, "known": a.known, "remedy": a.remedy,
                   "verdict": to_json(a.verdict)} for a in admission.answers],
    }  # fmt: skip
    if not quiet:
        ctx.output.value(view, quiet=admission.outcome)
    against = f", against {other}" if other else ", nothing serves there yet"
    ctx.output.say(f"{subject} for {target}{against}", style="bold")
    rows = [row for answer in admission.answers for row in _rows(to_json(answer))]
    ctx.output.table(("gate", "check", "", "what was found"), rows)


def _rows(answer: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    verdict = answer["verdict"]
    known = " (known)" if answer["known"] else ""
    if not verdict["checks"]:
        yield answer["gate"] + known, "", verdict["outcome"], verdict["reason"]
    for number, check in enumerate(verdict["checks"]):
        gate = answer["gate"] + known if number == 0 else ""
        yield gate, check["check"], check["outcome"], check["reason"]


def _write_card(
    ctx: Context, client: Client, file: Path, subject: Subject, admission: Admission, target: str
) -> None:
    from lockgate.cli.card import write_card

    view = client.get(f"/models/{subject.model}/versions/{subject.digest}")
    write_card(file, view, [to_json(answer) for answer in admission.answers], target)
    ctx.output.note(f"the card is in {file}")


COMMANDS = {"admit": admit}
