"""What a caption step is to do, as its processes tell one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.caption.config import CaptionConfig
from components.caption.image_captions import Captioning
from components.caption.labels import read_labels
from components.caption.screening import Screening
from components.caption.text_sources import Written
from components.caption.versions import Versions
from components.image.decoding import ImageLimits
from components.image.records import ImageRecord, read_manifest
from components.image.sources import open_source
from components.model.locations import fetch, is_hub_name
from components.storage.base import Storage
from components.storage.open import open_storage


@dataclass(frozen=True)
class Job:
    """One group that is to be captioned.

    Attributes:
        config: Where captions come from, and what a caption may be.
        limits: Which sizes of image are taken.
        group: The partition group's name.
        source_id: The source's name, as ingest returned it.
        encoding_key: The dataset's name.
        workdir: Where everything lies.
    """

    config: CaptionConfig
    limits: ImageLimits
    group: str
    source_id: str
    encoding_key: str
    workdir: Storage

    @property
    def dataset(self) -> Storage:
        """The dataset's folder."""
        return self.workdir.child(f"datasets/{self.encoding_key}")

    def captioning(self, images: Sequence[ImageRecord]) -> Captioning:
        """Open everything that captions of some images come from, label files included.

        Raises:
            DataError: Where ingest has not run, its source is gone, or a label file does not parse.
            ConfigError: Where a captioner is named that is not there, even if it is not needed this time.
        """
        for name in self.config.captioners:
            if not is_hub_name(name) and not name.startswith("s3://"):  # which would be fetched for nothing
                fetch(name, self.workdir)
        source = open_source(read_manifest(self.workdir, self.source_id).source)
        asked = "labels" in self.config.order
        labels = read_labels(self.config.labels, source, [image.name for image in images]) if asked else {}
        written = Written(self.config, source, labels)
        versions = Versions(self.config, written, self.workdir)
        screening = Screening(self.config.filters, self.workdir)
        return Captioning(self.config, self.limits, source, written, versions, screening)

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON."""
        values = {name: getattr(self, name) for name in ("group", "source_id", "encoding_key")}
        parts = {"config": self.config.model_dump(mode="json"), "limits": self.limits.model_dump(mode="json")}
        return {**values, **parts, "workdir": self.workdir.url}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        """Return the job that ``to_json`` wrote down."""
        config, limits = CaptionConfig.parse(values["config"]), ImageLimits.parse(values["limits"])
        workdir = open_storage(values["workdir"])
        return cls(config, limits, values["group"], values["source_id"], values["encoding_key"], workdir)
