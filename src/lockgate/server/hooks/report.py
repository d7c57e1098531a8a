"""What a training job reports: a body that was signed → an event of the ledger."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lockgate.core.errors import DeniedError, UsageError
from lockgate.core.events import TrainingReported
from lockgate.core.names import check_model, parse_version
from lockgate.registry.service import Registry
from lockgate.server.hooks.spec import InSpec, wanted

MAX_BODY = 64 * 1024
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Report(BaseModel):
    """One run's result. `version` (a number or a digest) is published already."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    model: str = Field(max_length=200)
    version: Annotated[int, Field(ge=1, lt=10**9)] | Annotated[str, Field(max_length=200)]
    status: Literal["succeeded", "failed"]
    run: Line
    url: Annotated[str, Field(max_length=2000, pattern=r"^https?://[!-~]+$")] | None = None
    metrics: dict[Annotated[str, Field(pattern=r"^[\w./@:-]{1,64}$")], float] = Field(
        default_factory=dict, max_length=100
    )


def record(
    name: str, spec: InSpec, message: str, body: bytes, registry: Registry
) -> dict[str, Any]:
    """Keeps what a signed body reports; the same message again has the same answer.

    Raises DeniedError for a model that the hook does not report of, NotFoundError for a version
    that is not here, UsageError or pydantic's ValidationError for what is no report.
    """
    told = Report.model_validate_json(body)
    if not wanted(spec.models, check_model(told.model)):
        raise DeniedError(
            f"the hook {name} does not report of {told.model}", hint="see 'models' in hooks.yaml"
        )
    ref = parse_version(str(told.version))
    if ref.alias is not None:
        raise UsageError("name the version by number or digest: an alias may have moved by now")
    found = registry.version(told.model, str(told.version))
    event = TrainingReported(
        model=told.model, number=found.number, digest=found.digest, status=told.status,
        run=told.run, hook=name, message=message, url=told.url, metrics=told.metrics,
    )  # fmt: skip
    kept = registry.report(event, actor=f"hook/{name}")
    return {
        "model": kept.model, "version": f"v{kept.number}", "digest": kept.digest,
        "status": kept.status, "message": kept.message,
    }  # fmt: skip
