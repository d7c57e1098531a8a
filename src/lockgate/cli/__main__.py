"""`python -m lockgate.cli` is the command `lockgate`."""

from lockgate.cli.main import run

run()
