"""The same verbs over HTTP: for the CLI, scripts, notebooks and CI."""

from lockgate.client.client import Client

__all__ = ["Client"]
