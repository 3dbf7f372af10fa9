"""Tars that tests draw, and what ingest makes of them."""

from __future__ import annotations

import io
import tarfile
from typing import Any

from components.image.records import ImageRecord, read_images, read_ingest_rejections, read_manifest
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from tests.stores.memory import MemoryStorage


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


class Tars:
    """A source in memory and what ingest makes of it."""

    def __init__(self, name: str) -> None:
        self.files: Storage = MemoryStorage(f"{name}-files")
        self.work: Storage = MemoryStorage(f"{name}-work")
        self.url = f"memory://{name}-files"

    def run(self, **settings: Any) -> dict[str, Any]:
        config = IngestConfig.parse({"source": self.url, "max_rejected": None, **settings})
        self.result = ingest(config, self.work, Progress(io.StringIO()))
        return self.result

    def images(self) -> list[ImageRecord]:
        source_id = self.result["source_id"]
        groups = read_manifest(self.work, source_id).groups
        images = [image for group in groups for image in read_images(self.work, source_id, group)]
        return sorted(images, key=lambda image: image.name)

    def names(self) -> list[str]:
        return [image.name.partition("@")[0] for image in self.images()]

    def reasons(self) -> dict[str, str]:
        rejections = read_ingest_rejections(self.work, self.result["source_id"])
        return {rejection.name.partition("@")[0]: rejection.reason for rejection in rejections}
