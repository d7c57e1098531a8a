"""The release spec: YAML from a stranger → a checked value."""

from lockgate.release.spec.shape import ReleaseSpec
from lockgate.release.spec.text import check_spec, parse_spec

__all__ = ["ReleaseSpec", "check_spec", "parse_spec"]
