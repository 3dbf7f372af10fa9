"""A folder of images that tests draw, and what ingest makes of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from components.image.records import ImageRecord, read_images, read_ingest_rejections, read_manifest
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from tests.images import image_bytes
from tests.stores.memory import MemoryStorage


class Photos:
    """A folder of images, and what ingest makes of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work: Storage = MemoryStorage(f"layouts-{root.parent.name}")
        self.log = io.StringIO()

    def put(self, name: str, data: bytes | str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def put_images(self, *names: str) -> None:
        for number, name in enumerate(names):
            self.put(name, image_bytes(number))

    def run(self, **settings: Any) -> dict[str, Any]:
        config = IngestConfig.parse({"source": str(self.root), "max_rejected": None, **settings})
        self.result = ingest(config, self.work, Progress(self.log))
        return self.result

    def images(self) -> dict[str, ImageRecord]:
        source_id = self.result["source_id"]
        groups = read_manifest(self.work, source_id).groups
        return {image.name: image for group in groups for image in read_images(self.work, source_id, group)}

    def captions(self) -> dict[str, str | None]:
        """The words of each image, or the name of the file that has them."""
        captions: dict[str, str | None] = {}
        for name, image in sorted(self.images().items()):
            caption = image.caption
            captions[name] = None if caption is None else caption.name if caption.text is None else caption.text
        return captions

    def rejected(self) -> dict[str, str]:
        rejections = read_ingest_rejections(self.work, self.result["source_id"])
        assert all(rejection.detail for rejection in rejections)
        return {rejection.name: rejection.reason for rejection in rejections}

    def layout(self) -> str:
        events = map(json.loads, self.log.getvalue().splitlines())
        return [str(event["layout"]) for event in events if event["event"] == "layout"][-1]
