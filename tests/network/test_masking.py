"""Test that secrets are replaced in what hosts send to sessions."""

import base64
import html
import json
import re
from urllib.parse import quote, quote_plus

import pytest

from aca_sessions.sandbox.proxy.masking import MaskedStream, Masker

KEY = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
SECRETS = [KEY, "pass word/with+signs&<\"'>=", "abcabcabcabd", "a" * 20]


@pytest.mark.parametrize("value", SECRETS)
def test_a_secret_is_masked_wherever_a_stream_is_split(value: str) -> None:
    masker = Masker([value])
    plain = value.encode()
    text = b"before " + plain + b" between " + plain[:-1] + b" " + plain[:3] + b" after"
    masked = text.replace(plain, b"*" * len(plain))
    for first in range(len(text)):
        for size in (1, 2, 7, len(text)):
            stream = MaskedStream(lambda: masker)
            parts = [text[:first], *(text[start : start + size] for start in range(first, len(text), size))]
            sent = [stream.feed(part) for part in parts]
            assert b"".join(sent) + stream.finish() == masked
            assert len(b"".join(sent)) > first + len(parts) - len(parts) - 2 * len(plain) * 6  # only a beginning is held back


@pytest.mark.parametrize("value", SECRETS[:2])
def test_a_secret_is_masked_in_the_forms_that_servers_send_back(value: str) -> None:
    masker = Masker([value])
    forms = [
        value.lower(),  # as the name of a header
        json.dumps(value)[1:-1],
        html.escape(value),
        quote(value, safe=""),
        quote_plus(value),
        re.sub("%..", lambda found: found[0].lower(), quote(value)),
    ]
    for form in forms:
        assert masker.mask(f"<{form}>".encode()) == f"<{'*' * len(form)}>".encode()
    for before in (b"", b"u:", b"user:", b"someone:"):
        for after in (b"", b"!", b" and more"):
            encoded = base64.b64encode(before + value.encode() + after)
            assert value.encode()[2:-2] not in base64.b64decode(masker.mask(encoded).replace(b"*", b"A"))
            assert masker.mask(encoded).count(b"*") >= len(value) * 8 // 6 - 3


def test_overlapping_secrets_are_masked_whole() -> None:
    masker = Masker(["xyz-abc", "abc-def"])
    stream = MaskedStream(lambda: masker)
    assert b"".join([*map(stream.feed, (b"<xyz-a", b"bc-d", b"ef>")), stream.finish()]) == b"<***********>"


def test_a_stream_holds_back_only_the_beginning_of_a_secret() -> None:
    masker = Masker([KEY])
    stream = MaskedStream(lambda: masker)
    assert stream.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert stream.feed(b"data: ghp_") == b"data: "
    assert stream.feed(b"no\n\n") == b"ghp_no\n\n"


def test_short_values_are_not_masked() -> None:
    assert not Masker(["12345"])
    assert Masker(["12345", "123456"]).mask(b"12345 123456") == b"12345 ******"


def test_a_secret_that_is_sent_while_a_stream_lasts_is_masked() -> None:
    known = [Masker([])]
    stream = MaskedStream(lambda: known[-1])
    assert stream.feed(b"before ") == b"before "
    known.append(Masker([KEY]))
    assert stream.feed(b"the key: " + KEY.encode() + b".") == b"the key: " + b"*" * len(KEY) + b"."
