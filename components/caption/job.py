"""The work of a caption step, in a form that can be handed to other processes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from components.caption.config import CaptionConfig
from components.caption.image_captions import ImageCaptions
from components.caption.screening import Screening
from components.caption.text_sources import open_texts
from components.caption.versions import Versions
from components.image.decoding import ImageLimits
from components.image.partition import ancestors
from components.image.records import ImageRecord, captions_prefix, read_manifest
from components.image.sources import open_images
from components.model.locations import fetch, is_hub_name
from components.storage.base import Storage
from components.storage.open import open_storage

# A group's captions, or a part of those that a killed step has saved.
_GROUP_FILE = re.compile(r"captions/(?P<set>[^/]+/[^/]+)/(?P<group>[^/.]+)\.(?:jsonl|unfinished/[^/]+)")


class GroupCaptions(NamedTuple):
    """Where a caption set may have captions of some images.

    Attributes:
        captions: The caption set's folder.
        groups: The groups, in the order in which they were made: of several outcomes of an image the last counts.
    """

    captions: Storage
    groups: tuple[str, ...]


@dataclass(frozen=True)
class CaptionJob:
    """One group that is to be captioned.

    Attributes:
        config: The sources of captions, and the rules for them.
        limits: The sizes of image that are accepted.
        group: The partition group's name.
        source_id: The source's name, as ingest returned it.
        caption_set: The caption set's name, ``<source-id>/<caption-key>``.
        workdir: The storage of the run.
    """

    config: CaptionConfig
    limits: ImageLimits
    group: str
    source_id: str
    caption_set: str
    workdir: Storage

    @property
    def captions(self) -> Storage:
        """The caption set's folder."""
        return self.workdir.child(captions_prefix(self.caption_set))

    def own_captions(self) -> GroupCaptions:
        """Return where this caption set has captions of the group's images: in the group, or those it was a part of."""
        return GroupCaptions(self.captions, (*reversed(ancestors(self.group)), self.group))

    def other_captions(self) -> Iterator[GroupCaptions]:
        """Yield what other caption sets may say of the group's images; listed when the first is needed.

        Those of the same source come first, since they are the likeliest, then the newest. A group's name is the
        beginning of its images' digests, so an image of this group is in one whose name begins alike.
        """
        written: dict[str, float] = {}
        groups: dict[str, set[str]] = {}
        for entry in self.workdir.list_dated("captions"):
            match = _GROUP_FILE.fullmatch(entry.key)
            if match and match["set"] != self.caption_set:
                name, group = match["set"], match["group"]
                written[name] = max(written.get(name, 0.0), entry.written)
                if group.startswith(self.group) or self.group.startswith(group):
                    groups.setdefault(name, set()).add(group)

        def likeliest(name: str) -> tuple[bool, float, str]:
            return name.partition("/")[0] != self.source_id, -written[name], name

        for name in sorted(groups, key=likeliest):
            of_set = sorted(groups[name], key=lambda group: (len(group), group))
            yield GroupCaptions(self.workdir.child(captions_prefix(name)), tuple(of_set))

    def image_captions(self, images: Sequence[ImageRecord]) -> ImageCaptions:
        """Open everything that the captions of some images come from, label files included.

        Raises:
            DataError: If ingest has not run, its source is gone, or a label file does not parse.
            ConfigError: If a captioner does not exist, even if it is not needed this time.
        """
        for name in self.config.captioners:
            if not is_hub_name(name) and not name.startswith("s3://"):  # those would be downloaded, maybe for nothing
                fetch(name, self.workdir)
        source = open_images(read_manifest(self.workdir, self.source_id), self.workdir)
        texts = open_texts(self.config, source, [image.name for image in images])
        versions = Versions(self.config, texts, self.workdir)
        screening = Screening(self.config.filters, self.workdir)
        return ImageCaptions(self.config, self.limits, source, texts, versions, screening)

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON."""
        values = {name: getattr(self, name) for name in ("group", "source_id", "caption_set")}
        parts = {"config": self.config.model_dump(mode="json"), "limits": self.limits.model_dump(mode="json")}
        return {**values, **parts, "workdir": self.workdir.url}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CaptionJob:
        """Return the job that ``to_json`` returned."""
        config, limits = CaptionConfig.parse(values["config"]), ImageLimits.parse(values["limits"])
        workdir = open_storage(values["workdir"])
        return cls(config, limits, values["group"], values["source_id"], values["caption_set"], workdir)
