"""Names, digests, durations and the codec."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core import canonical
from lockgate.core.codec import from_json, to_json
from lockgate.core.digests import Hasher, digest_of, is_digest, parse_digest, short
from lockgate.core.errors import (
    IntegrityError,
    LockgateError,
    UsageError,
    error_class,
    error_classes,
)
from lockgate.core.events import (
    ReleaseOpened,
    RollbackStarted,
    VersionId,
    body_of,
    event_classes,
    kind_of,
    parse_event,
)
from lockgate.core.names import check_alias, check_model, parse_version, split_reference
from lockgate.core.traffic import check_weights
from lockgate.core.units import duration, parse_duration, parse_ratio, size
from lockgate.core.verdict import CheckResult, Verdict


@pytest.mark.parametrize("name", ["acme/chat", "a/b", "acme-1/chat_70b.v2", "0x/9"])
def test_good_model_names(name: str) -> None:
    assert check_model(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "chat",
        "acme/",
        "/chat",
        "a/b/c",
        "Acme/chat",
        "acme/../x",
        "acme/ch at",
        "acme/chat\n",
        "acme/.chat",
        "-a/b",
        "a/b..c",
        "a/" + "x" * 64,
        "ａ/b",
    ],
)
def test_bad_model_names(name: str) -> None:
    with pytest.raises(UsageError):
        check_model(name)


def test_versions_are_named_three_ways() -> None:
    digest = digest_of(b"x")
    assert parse_version("v42").number == parse_version("42").number == 42
    assert parse_version("champion").alias == "champion"
    assert parse_version(digest).digest == digest
    for bad in ("v0", "", "Champion", "blake3:12", "-1", "v1x!"):
        with pytest.raises(UsageError):
            parse_version(bad)
    assert split_reference("acme/chat:v3") == ("acme/chat", "v3")
    assert split_reference("acme/chat") == ("acme/chat", None)


def test_an_alias_is_not_a_number() -> None:
    assert check_alias("champion") == "champion"
    with pytest.raises(UsageError):
        check_alias("v3")


def test_digest_of_pieces_is_digest_of_the_whole() -> None:
    hasher = Hasher()
    hasher.update(b"ab")
    hasher.update(memoryview(b"c"))
    assert hasher.digest() == digest_of(b"abc")
    assert parse_digest(digest_of(b"abc")) == digest_of(b"abc")
    assert not is_digest("blake3:" + "G" * 64)
    assert short(digest_of(b"abc")) == digest_of(b"abc")[:19]


def test_durations_and_sizes() -> None:
    assert parse_duration("10m") == 600
    assert parse_duration("1h30m") == 5400
    assert parse_duration("250ms") == 0.25
    assert parse_duration(5) == 5.0
    for bad in ("", "m", "10", "10x", "-3s", "1m2"):
        with pytest.raises(UsageError):
            parse_duration(bad)
    assert parse_ratio("10%") == pytest.approx(0.1)
    assert [duration(s) for s in (0.08, 4.2, 192, 7500)] == ["80 ms", "4.2 s", "3m12s", "2h05m"]
    assert [size(n) for n in (12, 4_200_000)] == ["12 B", "4.2 MB"]
    for bad in ("x", "-1%", "nan", "inf"):
        with pytest.raises(UsageError):
            parse_ratio(bad)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
        ),
        max_leaves=8,
    )
)
def test_canonical_json_is_one_text_for_one_value(value: object) -> None:
    import json

    text = canonical.encode(value)
    assert canonical.encode(json.loads(text)) == text


def test_canonical_json_has_no_nan() -> None:
    for bad in (float("nan"), float("inf"), {1, 2}, "\ud800"):
        with pytest.raises(UsageError):
            canonical.encode(bad)


def test_events_survive_the_wire() -> None:
    verdict = Verdict(
        outcome="fail",
        reason="slow",
        at=1.5,
        checks=(CheckResult(check="c", signal="s", outcome="fail", reason="r", e_value=200.0),),
    )
    opened = ReleaseOpened(
        release="rel-1",
        model="a/b",
        target="local",
        route="a/b@local",
        plan={"steps": [1, 2]},
        candidate=VersionId(number=2, digest="d2"),
        baseline=None,
        plan_digest="p",
    )
    for event in (
        opened,
        RollbackStarted(release="r", cause="verdict", reason="x", verdict=verdict),
    ):
        assert parse_event(kind_of(event), body_of(event)) == event


def test_a_field_of_tomorrow_is_ignored_and_a_missing_one_is_named() -> None:
    body = {"release": "r", "step": 1, "because": "approval", "reason": "", "colour": "red"}
    parse_event("ReleaseHeld", body)
    with pytest.raises(IntegrityError, match="no field 'step'"):
        parse_event("ReleaseHeld", {"release": "r"})
    with pytest.raises(IntegrityError, match="should be int"):
        parse_event("ReleaseHeld", {**body, "step": "one"})
    with pytest.raises(IntegrityError, match="because"):
        parse_event("ReleaseHeld", {**body, "because": "mood"})


def test_every_event_has_a_docstring_and_a_unique_tag() -> None:
    assert len(event_classes()) == 26
    assert all(kind.__doc__ for kind in event_classes().values())


def test_codec_round_trip_of_a_number_that_is_whole() -> None:
    assert (
        from_json(
            CheckResult,
            to_json(CheckResult(check="c", signal="s", outcome="pass", reason="", value=1)),
        ).value
        == 1.0
    )


def test_every_error_has_its_own_wire_name() -> None:
    codes = [cls.code for cls in error_classes()]
    assert len(codes) == len(set(codes))
    assert error_class("conflict").exit_code == 4
    assert error_class("no such thing") is LockgateError


def test_weights_add_up() -> None:
    check_weights({"a": 9_000, "b": 1_000})
    for bad in ({"a": 9_000}, {"a": 11_000, "b": -1_000}, {}):
        with pytest.raises(UsageError):
            check_weights(bad)
