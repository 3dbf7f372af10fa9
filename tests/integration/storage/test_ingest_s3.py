"""Images in a real S3 store, among objects with names that no folder could have."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest

from components.errors import DataError
from components.image.records import read_images, read_ingest_rejections
from components.image.sources import BAD_NAME
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.s3 import S3Storage
from tests.images import encoded, noise
from tests.stores.fixtures import BUCKET
from tests.stores.memory import MemoryStorage


def put(client: Any, source: S3Storage, name: str, data: bytes) -> None:
    """Write an object under a name that is no key."""
    client.put_object(Bucket=BUCKET, Key=f"{source.url.removeprefix(f's3://{BUCKET}/')}/{name}", Body=data)


def run(source: S3Storage, work: MemoryStorage) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """Return the result, the names of the images, and the reasons of the rejections by name."""
    result = ingest(IngestConfig(source=source.url, max_rejected=None), work, Progress(io.StringIO()))
    images = sorted(image.name.partition("@")[0] for image in read_images(work, result["source_id"], "g"))
    rejections = read_ingest_rejections(work, result["source_id"])
    assert all(rejection.detail for rejection in rejections)
    return result, images, {rejection.name: rejection.reason for rejection in rejections}


def test_objects_with_unusable_names_are_named_and_the_others_are_read(s3: S3Storage, s3_client: Any) -> None:
    good = ["a.png", "d/b c+%2f.png", "new\nline.png", "ctl\x01.png", "📷 é.png", " lead.png"]
    bad = ["x//c.png", "/d.png", "./e.png", "y/./f.png", "../g.png", "y/../h.png", "..", "with data/", "x//m.tar"]
    for number, name in enumerate(good):
        s3.write(name, encoded(noise(number)))
    for number, name in enumerate(bad):
        put(s3_client, s3, name, encoded(noise(100 + number)))
    put(s3_client, s3, "folder/", b"")  # how consoles show a folder that is empty
    put(s3_client, s3, "x//c.txt", b"words")
    work = MemoryStorage(s3.url)
    result, images, reasons = run(s3, work)
    assert images == sorted(good)
    assert reasons == dict.fromkeys((name for name in bad if name != ".."), BAD_NAME)
    again, *_ = run(s3, work)
    assert (again["read"], again["digest"]) == (0, result["digest"])


def test_a_source_of_nothing_but_unusable_names_says_so(s3: S3Storage, s3_client: Any) -> None:
    put(s3_client, s3, "x//c.png", encoded(noise(1)))
    with pytest.raises(DataError, match=r"x//c\.png.*rename the object"):
        run(s3, MemoryStorage(s3.url))


def test_a_tar_cut_between_two_members_is_named_in_a_store_too(s3: S3Storage) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("a.png", "b.png"):
            data = encoded(noise(ord(name[0])))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        cut = tar.offset  # behind the last member; the end mark is written when the tar is closed
    s3.write("whole.tar", file.getvalue())
    s3.write("cut.tar", file.getvalue()[:cut])
    s3.write("empty.tar", b"")
    _, images, reasons = run(s3, MemoryStorage(s3.url))
    assert images == ["cut.tar//a.png", "cut.tar//b.png"]
    assert {name: reason for name, reason in reasons.items() if reason != "duplicate"} == {
        "cut.tar": "archive-truncated",
        "empty.tar": "archive-truncated",
    }
