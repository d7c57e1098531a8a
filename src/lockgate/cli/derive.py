"""Verbs that make versions from versions: derive, steps, rerun."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from lockgate.cli.main import Context
from lockgate.cli.versions import reference
from lockgate.core.digests import short
from lockgate.core.errors import UsageError
from lockgate.core.names import check_alias, check_model, split_reference
from lockgate.core.units import duration, size
from lockgate.host.memory import keep_freed_memory

if TYPE_CHECKING:
    from lockgate.client.client import Client
    from lockgate.derive.pipeline import Planned
    from lockgate.derive.recipe import Given
    from lockgate.derive.run import Made, Site, Task
    from lockgate.derive.work import Workplace
    from lockgate.host.jobs.api import Limits

_LIMITS: tuple[tuple[str, str], ...] = (
    ("memory", "Stop a step that takes more memory, as 4GB [no limit]."),
    ("disk", "Stop a step that writes more, as 50GB [500GB]."),
    ("timeout", "Stop a step that takes longer, as 2h [1d]."),
    ("silent", "Stop a step that says nothing for so long, as 10m [1h]."),
)


def _limited(command: Any) -> Any:
    """Gives a verb the options that say what a step may take."""
    for name, text in reversed(_LIMITS):
        command = click.option(f"--{name}", help=text)(command)
    return command


@click.command()
@click.argument("what")
@click.option("--from", "inputs", multiple=True, metavar="NAME=MODEL:VERSION",
              help="What the step takes, as base=acme/chat:v1; may be repeated.")  # fmt: skip
@click.option("--with", "parameters", multiple=True, metavar="NAME=VALUE",
              help="A parameter of the step, as bits=4; may be repeated.")  # fmt: skip
@click.option("--to", "model", metavar="MODEL", help="The model that the new version is for.")
@click.option("--alias", "name", help="Make this an alias of the new version.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="For chance [0].")
@click.option("--threads", type=click.IntRange(1, 256), default=2,
              help="How many a step may use [2]; part of the recipe.")  # fmt: skip
@click.option("--plan-only", is_flag=True, help="Say what would be run; run nothing.")
@_limited
@click.pass_obj
def derive(
    ctx: Context,
    /,
    what: str,
    *,
    inputs: Sequence[str],
    parameters: Sequence[str],
    model: str | None,
    name: str | None,
    seed: int,
    threads: int,
    plan_only: bool,
    **limits: str | None,
) -> None:
    """Make a version from others: run the step WHAT, or the pipeline in the file WHAT.

    What was made before is found by its recipe and not made again; a run that was interrupted goes
    on where it was.
    """
    keep_freed_memory()
    if what.endswith((".yaml", ".yml")):
        if inputs or parameters or model or name or any(limits.values()):
            raise UsageError("a pipeline says all that itself", hint="change the file")
        _pipeline(ctx, Path(what), plan_only=plan_only)
        return
    from lockgate.derive.run import derive as recipe
    from lockgate.derive.run import make_task

    if model is None:
        raise UsageError("--to is missing: which model is the new version for?")
    with ctx.client() as client, _working(ctx, client) as (site, place):
        task = make_task(
            what, _inputs(inputs, site), dict(_parameter(text) for text in parameters),
            to=check_model(model), seed=seed, threads=threads, limits=_limits(**limits),
        )  # fmt: skip
        if plan_only:
            _show_task(ctx, site, what, task, model)
            return
        made = recipe(task, site, place)
        place.tidy()
        if name:
            _move(client, model, check_alias(name), made.version)
    _show_made(ctx, what, made)
    ctx.output.hint(f"lockgate release {made.version} --to local")


def _inputs(texts: Sequence[str], site: Site) -> dict[str, list[Given]]:
    found: dict[str, list[Given]] = {}
    for text in texts:
        name, equals, reference = text.partition("=")
        model, version = split_reference(reference) if equals else ("", None)
        if version is None:
            raise UsageError(f"{text!r} is no input", hint="write it as base=acme/chat:v1")
        found.setdefault(name, []).append(site.versions.find(model, version))
    return found


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is no parameter", hint="write it as --with bits=4")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"the value of {name!r} can't be read: {value[:80]!r}") from error


def _limits(**given: str | None) -> Limits:
    from lockgate.core import document
    from lockgate.derive.pipeline import LimitSpec

    return document.validate({k: v for k, v in given.items() if v}, LimitSpec).limits


@contextmanager
def _working(ctx: Context, client: Client) -> Iterator[tuple[Site, Workplace]]:
    """Gives the server's side and a place to work in, with what both say shown."""
    from lockgate.client.derived import RemoteVersions
    from lockgate.derive.run import Site
    from lockgate.derive.work import Workplace
    from lockgate.host.jobs.local import LocalJobs

    objects = client.objects()
    with ctx.output.progress() as report, ctx.output.stepping() as step:
        yield (
            Site(versions=RemoteVersions(client), shelf=client, objects=objects, actor=ctx.actor),
            Workplace(
                folder=ctx.home / "derive", jobs=LocalJobs(), objects=objects,
                hear=_hearing(ctx, step), report=report,
            ),
        )  # fmt: skip


def _hearing(ctx: Context, step: Callable[[str, float, float], None]) -> Callable[[Any], None]:
    def hear(heard: Any) -> None:
        if heard.line:
            ctx.output.note(f"  {heard.step}: {heard.line}")
        if heard.advance is not None:
            far = heard.advance
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in (far.metrics or {}).items())
            step(f"{heard.step} ({far.unit}) {numbers}", far.done, far.total)

    return hear


def _show_task(ctx: Context, site: Site, step: str, task: Task, model: str) -> None:
    digest, known = task.recipe.digest, task.known(site.versions)
    do = f"nothing to run: it is {known}" if known else "it will be run"
    view = {"step": step, "recipe": digest, "to": model,
            "version": f"v{known.number}" if known else None}  # fmt: skip
    ctx.output.value(view, quiet=digest)
    ctx.output.say(f"{step} → {model}, recipe {short(digest)}: {do}")


def _show_made(ctx: Context, step: str, made: Made) -> None:
    version = made.version
    view = {"model": version.model, "version": f"v{version.number}", "digest": version.digest,
            "recipe": made.recipe, "reused": made.reused, "metrics": dict(made.metrics),
            "seconds": made.seconds, "peak_bytes": made.peak_bytes}  # fmt: skip
    ctx.output.value(view, quiet=f"v{version.number}")
    if made.reused:
        ctx.output.say(f"{version} is what {step} gives: it was made before")
        return
    took = f"{duration(made.seconds)}, {size(made.peak_bytes)} of memory"
    ctx.output.say(f"{version}  made by {step} in {took}", style="bold green")
    for name, value in made.metrics.items():
        ctx.output.say(f"  {name:<24} {value:,.6g}")


def _move(client: Client, model: str, alias: str, version: Given) -> None:
    path = f"/models/{model}/aliases/{alias}"
    client.request("PUT", path, body={"version": version.digest, "reason": "derived"})


def _pipeline(ctx: Context, file: Path, *, plan_only: bool) -> None:
    from lockgate.derive.pipeline import Pipeline, parse_pipeline

    spec = parse_pipeline(_read(file))
    with ctx.client() as client, _working(ctx, client) as (site, place):
        pipeline = Pipeline(spec, site)
        if plan_only:
            _show_plan(ctx, pipeline.plan())
            return
        from lockgate.cli.admit import admitting

        made = pipeline.run(
            place, admitting(ctx, client, file.parent),
            begun=lambda name: ctx.output.note(f"{name} …"),
            ended=lambda name, done: _ended(ctx, name, done),
        )  # fmt: skip
        place.tidy()
        for model, alias, version in pipeline.aliases(made):
            _move(client, model, alias, version)
    ctx.output.value(
        {name: {"model": m.version.model, "version": f"v{m.version.number}",
                "digest": m.version.digest, "reused": m.reused, "metrics": dict(m.metrics)}
         for name, m in made.items()},
        quiet=[f"{m.version}" for m in made.values()],
    )  # fmt: skip


def _ended(ctx: Context, name: str, made: Made | None) -> None:
    if made is None:
        ctx.output.say(f"{name}: passed", style="bold green")
        return
    how = "known" if made.reused else f"made in {duration(made.seconds)}"
    numbers = ", ".join(f"{key} {value:.4g}" for key, value in made.metrics.items())
    ctx.output.say(f"{name}: {made.version} ({how})  {numbers}")


def _show_plan(ctx: Context, plan: Sequence[Planned]) -> None:
    rows: list[dict[str, Any]] = [
        {"stage": p.name, "what": p.what, "from": list(p.inputs), "to": p.to, "do": p.do,
         "version": f"{p.version}" if p.version else None, "runs": p.runs,
         "took_s": p.took.seconds if p.took else None,
         "took_bytes": p.took.peak_bytes if p.took else None}
        for p in plan
    ]  # fmt: skip
    ctx.output.value(rows, quiet=[f"{row['stage']} {row['do']}" for row in rows])
    ctx.output.table(
        ("stage", "what", "from", "to", "will", "a run took"),
        [(r["stage"], r["what"], ", ".join(r["from"]), r["version"] or r["to"], r["do"],
          _cost(p)) for r, p in zip(rows, plan, strict=True)],
    )  # fmt: skip


def _cost(planned: Planned) -> str:
    """Returns what running the stage will probably take: what it took last time."""
    if planned.took is None or planned.do == "reuse":
        return ""
    times = f"{planned.runs} × " if planned.runs > 1 else ""
    return f"{times}{duration(planned.took.seconds)}, {size(planned.took.peak_bytes)}"


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} can't be read: {error}") from error


@click.command()
@click.argument("step", required=False)
@click.pass_obj
def steps(ctx: Context, step: str | None) -> None:
    """List the steps there are, or describe STEP: what it takes, and its parameters."""
    from lockgate.derive.find import find_step, known_steps

    if step is None:
        found = {name: find_step(name).summary for name in sorted(known_steps())}
        ctx.output.value(found, quiet=list(found))
        ctx.output.table(("step", "what it does"), list(found.items()))
        return
    chosen = find_step(step)
    schema = chosen.parameters.model_json_schema()
    view = {"step": step, "summary": chosen.summary, "libraries": list(chosen.libraries),
            "deterministic": chosen.deterministic, "parameters": schema,
            "inputs": [{"name": i.name, "relation": i.relation, "required": i.required,
                        "many": i.many} for i in chosen.inputs]}  # fmt: skip
    ctx.output.value(view, quiet=list(schema.get("properties", {})))
    ctx.output.say(f"{step}: {chosen.summary}", style="bold")
    ctx.output.table(
        ("input", "lineage", ""),
        [(i.name, i.relation, _how_many(i.required, i.many)) for i in chosen.inputs],
    )
    ctx.output.table(
        ("parameter", "default", "what it is"),
        list(_parameters(schema)),
    )


def _parameters(schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields name, default and meaning of parameters; those of a kind as `of.query (postgres)`."""
    for name, about in schema.get("properties", {}).items():
        yield name, _default(about), about.get("description", "")
        for kind, place in about.get("discriminator", {}).get("mapping", {}).items():
            inner = schema["$defs"][place.rpartition("/")[2]]["properties"]
            for part, said in inner.items():
                if "const" not in said:
                    yield f"{name}.{part} ({kind})", _default(said), said.get("description", "")


def _how_many(required: bool, many: bool) -> str:
    return ("required" if required else "optional") + (", several" if many else "")


def _default(about: dict[str, Any]) -> str:
    return str(about["default"]) if "default" in about else "–"


@click.command()
@click.argument("model")
@click.argument("version", required=False)
@_limited
@click.pass_obj
def rerun(ctx: Context, /, model: str, version: str | None, **limits: str | None) -> None:
    """Run the recipe of a VERSION of MODEL again, and compare every byte."""
    from lockgate.derive.again import reproduce

    name, chosen = reference(model, version)
    keep_freed_memory()
    with ctx.client() as client, _working(ctx, client) as (site, place):
        made = reproduce(name, chosen, site, place, _limits(**limits))
        place.tidy()
    ctx.output.value({"digest": made.version.digest, "recipe": made.recipe, "same": True,
                      "seconds": made.seconds}, quiet=made.version.digest)  # fmt: skip
    ctx.output.say(f"{made.version} is what its recipe gives, bit for bit", style="bold green")


COMMANDS = {"derive": derive, "steps": steps, "rerun": rerun}
