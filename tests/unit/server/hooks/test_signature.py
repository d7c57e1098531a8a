"""Signatures: the scheme's published vector, and everything that must not pass."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.errors import DeniedError, UsageError
from lockgate.server.hooks.signature import (
    ID,
    SIGNATURE,
    TIMESTAMP,
    Secret,
    headers,
    parse_secret,
    read_claim,
    sign,
    verify,
)

# Published with the reference implementations of Standard Webhooks.
TEXT = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE, AT, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
PUBLISHED = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
SECRET = parse_secret(TEXT)
OTHER = Secret(key=b"o" * 32)


def test_the_published_vector() -> None:
    assert sign(SECRET, MESSAGE, AT, BODY) == PUBLISHED
    given_ = {ID: MESSAGE, TIMESTAMP: str(AT), SIGNATURE: PUBLISHED}
    verify([SECRET], read_claim(given_, AT + 10), BODY)


@given(st.binary(max_size=200), st.text("abcXYZ019_-", min_size=1, max_size=40))
def test_what_is_signed_is_verified_and_nothing_else(body: bytes, message: str) -> None:
    claim = read_claim(headers([SECRET], message, AT, body), AT)
    verify([SECRET], claim, body)
    for wrong in (body + b" ", body[:-1] if body else b"x"):
        with pytest.raises(DeniedError):
            verify([SECRET], claim, wrong)
    with pytest.raises(DeniedError):
        verify([OTHER], claim, body)


def test_secrets_that_change_sign_and_are_accepted_together() -> None:
    both = read_claim(headers([OTHER, SECRET], MESSAGE, AT, BODY), AT)
    verify([SECRET], both, BODY)
    verify([OTHER], both, BODY)
    verify([OTHER, SECRET], read_claim(headers([SECRET], MESSAGE, AT, BODY), AT), BODY)


@pytest.mark.parametrize("seconds", [301, -301, 86_400])
def test_a_message_of_another_time_is_refused(seconds: int) -> None:
    read_claim(headers([SECRET], MESSAGE, AT, BODY), AT + 300)
    with pytest.raises(DeniedError, match="minutes"):
        read_claim(headers([SECRET], MESSAGE, AT, BODY), AT + seconds)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (ID, ""), (ID, "a.b"), (ID, "x" * 129), (ID, "a\n"), (TIMESTAMP, "soon"),
        (TIMESTAMP, "-5"), (TIMESTAMP, "1" * 400), (TIMESTAMP, "1.5"), (TIMESTAMP, "١"),
        (SIGNATURE, ""),
    ],
)  # fmt: skip
def test_headers_that_no_message_has(name: str, value: str) -> None:
    with pytest.raises(DeniedError):
        read_claim({**headers([SECRET], MESSAGE, AT, BODY), name: value}, AT)


@pytest.mark.parametrize(
    "signature",
    [
        PUBLISHED.replace("v1,", "v1a,"), PUBLISHED.replace("v1,", "v2,"), PUBLISHED[3:],
        PUBLISHED[:-1], "v1,", "v1,é", "v1," + "A" * 10_000, " ".join(["v1,AA"] * 16 + [PUBLISHED]),
    ],
)  # fmt: skip
def test_signatures_that_are_none(signature: str) -> None:
    claim = read_claim({ID: MESSAGE, TIMESTAMP: str(AT), SIGNATURE: signature}, AT)
    with pytest.raises(DeniedError):
        verify([SECRET], claim, BODY)


@pytest.mark.parametrize(
    "text", ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_c2hvcnQ=", "whsec_§§§§",
             "whsec_" + base64.b64encode(b"x" * 65).decode()]
)  # fmt: skip
def test_texts_that_are_no_secret_and_are_not_shown(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_secret(text)
    shown = str(caught.value) + str(caught.value.hint) + repr(caught.value.__cause__)
    assert len(text) < 8 or text.removeprefix("whsec_") not in shown
    assert b"key" not in repr(SECRET).encode()


def test_openssl_signs_the_same() -> None:
    """As docs/ci.md says that a training job may."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    script = (
        'key=$(printf %s "${1#whsec_}" | openssl base64 -d -A | od -An -tx1 | tr -d " \\n")\n'
        'printf %s "$2.$3.$4" | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary'
        " | openssl base64 -A"
    )
    done = subprocess.run(
        ["sh", "-c", script, "sh", TEXT, MESSAGE, str(AT), BODY.decode()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "v1," + done.stdout == PUBLISHED
    assert re.fullmatch(r"[\w+/=]+", done.stdout)
