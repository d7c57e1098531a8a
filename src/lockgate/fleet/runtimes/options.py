"""The options that a spec gives to a runtime, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lockgate.core.errors import UsageError

Options = Mapping[str, object]


def check_names(options: Options, known: Sequence[str], *, runtime: str) -> None:
    """Raises UsageError when an option is not one of `known`."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(
            f"the runtime {runtime!r} has no option {unknown[0]!r}",
            hint=f"its options are {', '.join(sorted(known))}",
        )


def whole(options: Options, name: str, default: int, *, low: int, high: int) -> int:
    """Returns a whole number from `low` to `high`; raises UsageError for anything else."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"the option {name!r} must be a whole number from {low} to {high}")
    return value


def texts(options: Options, name: str) -> tuple[str, ...]:
    """Returns a list of texts, empty when the option is missing; raises UsageError otherwise."""
    value = options.get(name, ())
    if not isinstance(value, list | tuple) or not all(_is_argument(item) for item in value):
        raise UsageError(f"the option {name!r} must be a list of texts without NUL characters")
    return tuple(value)


def environment(options: Options) -> dict[str, str]:
    """Returns the option `env`: names and texts; raises UsageError for anything else."""
    value = options.get("env", {})
    good = isinstance(value, Mapping) and all(
        _is_argument(key) and key and "=" not in key and _is_argument(text)
        for key, text in value.items()
    )
    if not isinstance(value, Mapping) or not good:
        raise UsageError(
            "the option 'env' must map names to texts", hint="put quotes around numbers in YAML"
        )
    return dict(value)


def thread_environment(threads: int) -> dict[str, str]:
    """Returns what keeps every library of a replica at `threads` threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {name: str(threads) for name in names}


def _is_argument(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value
