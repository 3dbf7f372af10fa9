"""No message, event or line of a log shows what gives access to something."""

from __future__ import annotations

import io
import json

import pytest

from components.errors import ConfigError, ImageRejected, without_credentials
from components.progress import Progress


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://me:pass@bucket/x", "s3://***@bucket/x"),
        ("https://token@host", "https://***@host"),
        ("'http://me:p%40ss@host:80/a@b'", "'http://***@host:80/a@b'"),
        ("http://h/x?X-Amz-Signature=ab12&v=1#top", "http://h/x?X-Amz-Signature=***&v=1#top"),
        ("(http://h/x?sv=1&sig=a%2Bb)", "(http://h/x?sv=1&sig=***)"),
        ("http://me:pass@h/?access_token=x and s3://a:b@c", "http://***@h/?access_token=*** and s3://***@c"),
        (
            "https://storage/x?x-goog-credential=me&X-Goog-Signature=1",
            "https://storage/x?x-goog-credential=***&X-Goog-Signature=***",
        ),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("owner/name@main", "owner/name@main"),
        ("me@example.org writes sig=1", "me@example.org writes sig=1"),
        ("file:///home/me@work/x?key", "file:///home/me@work/x?key"),
        ("s3://***@bucket", "s3://***@bucket"),
    ],
)
def test_credentials_of_an_address_are_starred(text: str, expected: str) -> None:
    assert without_credentials(text) == expected
    assert str(ConfigError(text)) == expected


def test_an_error_without_a_message_stays_so() -> None:
    assert str(ConfigError()) == ""
    assert str(ImageRejected("not-an-image", "http://a:b@c")) == "not-an-image: http://***@c"


def test_an_event_stays_json() -> None:
    stream = io.StringIO()
    Progress(stream).event(
        "failed", error='cannot read "s3://me:pass@b" and "http://h?sig=x"\nreally', nested={"a": ["s3://m:p@b"]}
    )
    assert json.loads(stream.getvalue()) == {
        "event": "failed",
        "error": 'cannot read "s3://***@b" and "http://h?sig=***"\nreally',
        "nested": {"a": ["s3://***@b"]},
    }
