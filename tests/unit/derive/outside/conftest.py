"""Real servers, one of each for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.services import nats_server, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with postgres_server() as address:
        yield address


@pytest.fixture(scope="session")
def nats_address() -> Iterator[str]:
    """The address of a NATS server with JetStream."""
    pytest.importorskip("nats", reason="nats-py is not installed")
    with nats_server() as address:
        yield address
