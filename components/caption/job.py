"""The work of a caption step, in a form that can be handed to other processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.caption.config import CaptionConfig
from components.caption.image_captions import ImageCaptions
from components.caption.labels import read_labels
from components.caption.screening import Screening
from components.caption.text_sources import TextSources
from components.caption.versions import Versions
from components.image.decoding import ImageLimits
from components.image.records import ImageRecord, read_manifest
from components.image.sources import open_source
from components.model.locations import fetch, is_hub_name
from components.storage.base import Storage
from components.storage.open import open_storage


@dataclass(frozen=True)
class CaptionJob:
    """One group that is to be captioned.

    Attributes:
        config: The sources of captions, and the rules for them.
        limits: The sizes of image that are accepted.
        group: The partition group's name.
        source_id: The source's name, as ingest returned it.
        encoding_key: The dataset's name.
        workdir: The storage of the run.
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

    def image_captions(self, images: Sequence[ImageRecord]) -> ImageCaptions:
        """Open everything that the captions of some images come from, label files included.

        Raises:
            DataError: If ingest has not run, its source is gone, or a label file does not parse.
            ConfigError: If a captioner does not exist, even if it is not needed this time.
        """
        for name in self.config.captioners:
            if not is_hub_name(name) and not name.startswith("s3://"):  # those would be downloaded, maybe for nothing
                fetch(name, self.workdir)
        source = open_source(read_manifest(self.workdir, self.source_id).source)
        needs_labels = "labels" in self.config.order
        labels = read_labels(self.config.labels, source, [image.name for image in images]) if needs_labels else {}
        text_sources = TextSources(self.config, source, labels)
        versions = Versions(self.config, text_sources, self.workdir)
        screening = Screening(self.config.filters, self.workdir)
        return ImageCaptions(self.config, self.limits, source, text_sources, versions, screening)

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON."""
        values = {name: getattr(self, name) for name in ("group", "source_id", "encoding_key")}
        parts = {"config": self.config.model_dump(mode="json"), "limits": self.limits.model_dump(mode="json")}
        return {**values, **parts, "workdir": self.workdir.url}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CaptionJob:
        """Return the job that ``to_json`` returned."""
        config, limits = CaptionConfig.parse(values["config"]), ImageLimits.parse(values["limits"])
        workdir = open_storage(values["workdir"])
        return cls(config, limits, values["group"], values["source_id"], values["encoding_key"], workdir)
