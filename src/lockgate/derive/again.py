"""Is a version what its recipe gives? Runs it again and compares every byte."""

from __future__ import annotations

from lockgate.core.digests import hex_of
from lockgate.core.errors import IntegrityError, UsageError
from lockgate.derive.recipe import Given
from lockgate.derive.run import Made, Site, make_task
from lockgate.derive.work import Workplace
from lockgate.host import trees
from lockgate.host.jobs.api import Limits
from lockgate.registry.manifest import digest_of_manifest
from lockgate.registry.scan import folder_manifest


def reproduce(model: str, version: str, site: Site, place: Workplace, limits: Limits) -> Made:
    """Runs a version's recipe again, and compares what comes out, bit for bit.

    Raises IntegrityError when it is not the same, UsageError when the code or a library that the
    recipe names is not what is here.
    """
    found = site.versions.find(model, version)
    body = site.versions.recipe_of(model, found.digest)
    inputs: dict[str, list[Given]] = {}
    for name, digest in body["inputs"]:
        inputs.setdefault(name, []).append(Given(name=name, model=model, number=0, digest=digest))
    task = make_task(
        body["step"], inputs, body["parameters"], to=model, seed=body["seed"],
        threads=body["threads"], limits=limits,
    )  # fmt: skip
    for part in ("code", "libraries"):
        if task.recipe.body()[part] != body[part]:
            raise UsageError(
                f"the {part} of {body['step']} here is not what made {found}",
                hint=f"it was {body[part]}, here it is {task.recipe.body()[part]}",
            )
    with place.claim("again-" + hex_of(task.recipe.digest)[:24]) as folder:
        ran = place.run(task.recipe, task.parameters, folder, task.limits, task.outside)
        digest = digest_of_manifest(folder_manifest(ran.out))
        trees.remove(folder)
    if digest != found.digest:
        raise IntegrityError(
            f"run again, {body['step']} gives {digest}, which is not {found}",
            hint=None if task.step.deterministic else "the step does not promise the same bytes",
        )
    return Made(
        version=found, reused=False, recipe=task.recipe.digest, metrics=ran.metrics,
        seconds=ran.seconds, peak_bytes=ran.peak_bytes,
    )  # fmt: skip
