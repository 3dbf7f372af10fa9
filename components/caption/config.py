"""Settings of the caption step."""

from __future__ import annotations

import re
import string
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from components.image.filters import FilterConfig
from components.settings import Operational, Settings

# Captioners that have a name of their own here.
SHORT_NAMES = {
    "blip": "Salesforce/blip-image-captioning-base",
    "blip-large": "Salesforce/blip-image-captioning-large",
    "blip2": "Salesforce/blip2-opt-2.7b",
    "florence2": "florence-community/Florence-2-large",
    "smolvlm": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "qwen2.5-vl": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen3-vl": "Qwen/Qwen3-VL-4B-Instruct",
    "paligemma": "google/paligemma-3b-mix-224",
    "gemma3": "google/gemma-3-4b-it",
}

_PINNED = re.compile(r"[\w.-]+/[\w.-]+@[\w./-]+")

# Settings that say how the work is done, not what comes out.
_HOW = frozenset({"batch_size", "processes", "start_seconds", "hang_seconds", "device", "readers"})

Origin = Literal["sidecar", "folder", "labels", "fixed", "model"]
Text = Annotated[str, Field(max_length=500)]
# One name, or several; null for none.
Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: () if value is None else (value,) if isinstance(value, str) else value),
]


class LabelsConfig(Settings):
    """Label files, from which captions are made."""

    layout: Literal["cub", "celeba", "csv", "json"] | None = Field(
        None,
        description=(
            "cub: images.txt, image_class_labels.txt and classes.txt of CUB-200-2011; celeba: list_attr_celeba.txt; "
            "csv: file name and labels; json: labels by file name, as in FFHQ's and StyleGAN's files; null for none"
        ),
    )
    at: str = Field(
        "",
        description=(
            "the file, or cub's folder: a name below the source, an absolute path or s3://…; empty for the name that "
            "the layout gives it (labels.csv, labels.json), at the top of the source"
        ),
    )
    columns: tuple[str, ...] = Field(
        (), description="names of the columns or attributes that are used, in this order; empty for all"
    )


class TagsConfig(Settings):
    """What is done to captions that are lists of tags, as booru sites have them; a captioner writes sentences."""

    separator: str | None = Field(
        None, min_length=1, max_length=8, description="what stands between tags, such as ', '; null for sentences"
    )
    shuffled: int = Field(
        0,
        ge=0,
        le=64,
        description="captions made of one list, each in a random order of its own; 0 keeps the order of the list",
    )
    keep: int = Field(0, ge=0, le=1000, description="how many first tags are neither moved nor dropped")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability that any further tag is dropped from a caption")

    @model_validator(mode="after")
    def _have_tags(self) -> Self:
        if self.separator is None and (self.shuffled or self.dropout):
            raise ValueError(".shuffled and .dropout are for tags; set .separator, the text between two tags")
        return self


class CaptionConfig(Settings):
    """The sources of captions, and the rules for them."""

    sources: tuple[Origin, ...] = Field(
        ("sidecar", "model"),
        min_length=1,
        description=(
            "where captions come from, in order: sidecar (the file beside the image, or metadata), folder (the name of "
            "the image's folder), labels (label files), fixed (one for all), model"
        ),
    )
    take: Literal["first", "all"] = Field(
        "first", description="captions of the first source that has a usable one, or of all sources"
    )
    lines: Literal["first", "all", "join"] = Field(
        "join", description="of a sidecar with several lines: the first, each as a caption of its own, or all as one"
    )
    encoding: str | None = Field(
        None,
        max_length=40,
        description=(
            "encoding of caption files that are not UTF-8 and have no mark of UTF-16 or UTF-32, such as cp1252 "
            "(Windows in Western Europe), gb18030 or shift_jis; null: their captions are not used"
        ),
    )
    labels: LabelsConfig = LabelsConfig()
    label_template: Text = Field(
        "a photo of a {label}",
        description="caption from a folder's name or the labels, which take the place of the word {label} in braces",
    )
    fixed: Text = Field("", description="the caption of the source fixed, such as 'a photo of sks dog'")
    prefix: Text = Field("", description="text put before every caption, unchanged")
    trigger: Text = Field("", description="word put between prefix and caption, such as sks; the first tag of tags")
    suffix: Text = Field("", description="text put behind every caption, unchanged")
    tags: TagsConfig = TagsConfig()
    min_characters: int = Field(1, ge=1, le=100_000, description="shortest caption that is accepted, in characters")
    max_characters: int = Field(2000, ge=1, le=100_000, description="longest caption that is accepted, in characters")
    banned: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="words for which an image is rejected: whole words, in upper or lower case"
    )
    missing: Literal["reject", "empty"] = Field(
        "reject",
        description="what happens to an image without a usable caption: reject it, or keep it with an empty caption",
    )
    model: Names = Field(
        ("blip",),
        max_length=8,
        description=(
            f"captioner of the source model: {', '.join(SHORT_NAMES)}, a folder, workdir:…, s3://… or owner/name"
            "[@revision] of the Hugging Face hub; several write a caption each; null for none"
        ),
    )
    prompt: str = Field(
        "", max_length=2000, description="prompt of the captioners, or text that they continue; empty for their own"
    )
    max_new_tokens: int = Field(128, ge=1, le=1024, description="longest caption that a captioner writes, in tokens")
    batch_size: int = Field(
        8, ge=1, le=1024, description="images that a captioner reads at once; fewer if they do not fit into memory"
    )
    max_side: int = Field(
        1024, ge=16, le=16384, description="longest side of the images given to a captioner, in pixels"
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="number type of the captioner; auto is bf16 on a GPU (fp16 on older ones), fp32 elsewhere"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the captioners; auto is the GPU if there is one"
    )
    processes: int = Field(0, ge=0, le=64, description="processes that caption at once; 0 for one per GPU")
    start_seconds: Operational[float | None] = Field(
        3600.0,
        gt=0,
        le=604_800,
        description="of several processes: seconds until one has its first batch, downloads included, or it counts as "
        "hung; null: no limit",
    )
    hang_seconds: Operational[float | None] = Field(
        3600.0,
        gt=0,
        le=604_800,
        description="of several processes: seconds from batch to batch, or the process counts as hung; null: no limit",
    )
    trust_remote_code: str | None = Field(
        None, description="owner/name@revision of the one captioner whose own code may run; null for none"
    )
    filters: FilterConfig = FilterConfig()
    readers: int = Field(8, ge=1, le=256, description="files that are read and decoded at the same time")

    @field_validator("sources")
    @classmethod
    def _once_each(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(sources)) < len(sources):
            raise ValueError("each source can be asked once")
        return sources

    @field_validator("encoding")
    @classmethod
    def _is_an_encoding(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                b"a".decode(encoding)
            except (LookupError, UnicodeError, ValueError):
                raise ValueError(f"{encoding!r} is no encoding of text that Python knows, such as cp1252") from None
        return encoding

    @field_validator("label_template")
    @classmethod
    def _names_the_label(cls, template: str) -> str:
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ for a brace") from None
        fields = {(field, spec, conversion) for _, field, spec, conversion in parts if field is not None}
        if fields != {("label", "", None)}:
            raise ValueError(
                "write {label}, with the braces, where the name goes, and no other braces, such as 'a big {label}'"
            )
        return template

    @field_validator("trust_remote_code")
    @classmethod
    def _is_pinned(cls, name: str | None) -> str | None:
        if name is not None and not _PINNED.fullmatch(name):
            raise ValueError("expected owner/name@revision, so that the code is always the same")
        return name

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if "fixed" in self.sources and not self.fixed:
            raise ValueError(".sources names fixed, but .fixed is empty; write the caption, or remove the source")
        if "labels" in self.sources and self.labels.layout is None:
            raise ValueError(".sources names labels, but .labels.layout is null; set the layout of the label files")
        if self.min_characters > self.max_characters:
            raise ValueError(
                f".min_characters ({self.min_characters}) must not be above .max_characters ({self.max_characters})"
            )
        if self.trust_remote_code is not None and self.trust_remote_code not in self.captioners:
            raise ValueError(f".trust_remote_code ({self.trust_remote_code}) must be in .model, revision included")
        return self

    @property
    def texts(self) -> dict[str, Any]:
        """The settings on which the words of captions may depend, as JSON."""
        return self.model_dump(mode="json", exclude={*_HOW, "filters"})

    @property
    def outcome(self) -> dict[str, Any]:
        """The settings on which captions and rejections may depend, as JSON."""
        return {**self.texts, "filters": self.filters.model_dump(mode="json")}

    @property
    def captioners(self) -> tuple[str, ...]:
        """The captioners' full names."""
        return tuple(SHORT_NAMES.get(name, name) for name in self.model) if "model" in self.sources else ()

    @property
    def order(self) -> tuple[Origin, ...]:
        """The sources in order, without model if no captioner is named."""
        return tuple(origin for origin in self.sources if origin != "model" or self.model)
