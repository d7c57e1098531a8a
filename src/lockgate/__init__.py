"""lockgate: takes a model from finished weights to safe production traffic, and back."""

from lockgate._version import __version__

__all__ = ["__version__"]
