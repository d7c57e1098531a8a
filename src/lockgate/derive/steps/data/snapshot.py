"""The step `snapshot`: something outside → a version that is a copy of it, and what it was."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lockgate.core.errors import IntegrityError
from lockgate.derive.api import Input, Metrics, Outside, Work
from lockgate.derive.connections import read_connection, shown
from lockgate.derive.steps.data.ingest import need_pyarrow
from lockgate.derive.steps.data.outside.objects import ABOUT, StoredObjects
from lockgate.derive.steps.data.outside.postgres import PostgresRows
from lockgate.derive.steps.data.outside.stream import StreamWindow
from lockgate.derive.steps.data.outside.taken import discreet

FORMAT = "lockgate/snapshot@1"


class SnapshotParameters(BaseModel):
    """What to copy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: Annotated[
        PostgresRows | StoredObjects | StreamWindow, Field(discriminator="kind")
    ] = Field(description="kind: postgres, objects or nats, and what of it")  # fmt: skip
    digest: Annotated[str, Field(pattern=r"^blake3:[0-9a-f]{64}$")] | None = Field(
        default=None, description="that the content must have, as snapshot.json of a version says"
    )


class Snapshot:
    """Takes a copy of rows of a server, of objects, or of a window of a stream."""

    name = "snapshot"
    summary = "Copy a PostgreSQL query, objects of a store, or a window of a NATS stream."
    inputs: tuple[Input, ...] = ()
    parameters: type[SnapshotParameters] = SnapshotParameters
    libraries: tuple[str, ...] = ("psycopg", "nats-py", "obstore", "pyarrow")
    deterministic = False

    def outside(self, parameters: SnapshotParameters) -> Outside:
        """See `LooksOutside`: with a digest, or a window that is over, it can't be another."""
        of = parameters.of
        pinned = parameters.digest is not None or of.pinned()
        return Outside(connections=(of.connection,), pinned=pinned)

    def run(self, work: Work) -> Metrics:
        """Fills the folder with the copy and `snapshot.json`; returns counts.

        Raises IntegrityError when the content does not have the digest that was asked for, and
        what the ways to copy raise.
        """
        asked: SnapshotParameters = work.parameters
        if asked.of.kind == "postgres":
            need_pyarrow()
        address = read_connection(asked.of.connection)
        with discreet(address):
            taken = asked.of.take(address, work)
        if asked.digest is not None and taken.digest != asked.digest:
            raise IntegrityError(
                f"what is there now has the digest {taken.digest}, not {asked.digest}",
                hint="it has changed since; leave the digest out to take it as it is",
            )
        body: dict[str, Any] = {
            "format": FORMAT, "kind": asked.of.kind, "connection": asked.of.connection,
            "from": shown(address), **taken.about, "digest": taken.digest,
        }  # fmt: skip
        text = json.dumps(body, indent=2, ensure_ascii=True) + "\n"
        (work.out / ABOUT).write_text(text, "utf-8")
        work.log(f"its digest is {taken.digest}")
        return taken.metrics
