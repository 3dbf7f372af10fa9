"""Settings of the ingest step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from components.digests import short
from components.image.decoding import ImageLimits
from components.settings import Operational, Settings

Layout = Literal["auto", "folder", "imagefolder", "webdataset", "parquet", "hdf5", "addresses"]
_PLACE = (
    "folder of images, read recursively: a local path or s3://bucket/prefix; or a single file of images (.tar, "
    ".parquet, .arrow, .h5, .hdf5); or example:digits"
)


class SourceConfig(Settings):
    """One of several places that images come from."""

    source: str = Field(min_length=1, description=_PLACE)
    layout: Layout | None = Field(None, description="as ingest.layout, for this place alone; null: what that says")
    repeats: float | None = Field(
        None,
        gt=0,
        le=1000,
        description=(
            "how often each image stands in an epoch; 0.5: in every other one; null: once. Of equal images in several "
            "places the one with the most repeats is kept, of these the first"
        ),
    )
    weight: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description=(
            "share of an epoch, relative to the weights of the other places: no image stands in an epoch less than "
            "once, those of a small place with a large weight more often; for all places or for none"
        ),
    )

    @model_validator(mode="after")
    def _repeats_or_weight(self) -> Self:
        if self.repeats is not None and self.weight is not None:
            raise ValueError(f".repeats ({self.repeats:g}) and .weight ({self.weight:g}) are both set; remove one")
        return self


class RowsConfig(Settings):
    """How files of rows are read: Parquet, Arrow and HDF5."""

    image: str | None = Field(
        None, min_length=1, description="column with the images, or with their paths; null: found by its type and name"
    )
    caption: str | None = Field(
        None,
        min_length=1,
        description="column with the captions; null: one of ingest.caption_fields, or the only column of text",
    )
    splits: tuple[str, ...] = Field(
        ("train",),
        description=(
            "splits to read, of train, validation and test, which the names of files and folders tell; what names "
            "none is of train; [] reads all"
        ),
    )
    isolated: Operational[bool] = Field(
        True, description="read them in a process of its own, so that a damaged file costs only itself"
    )
    memory_gib: Operational[float] = Field(
        8.0, ge=1, le=1024, description="most memory of that process, in GiB; a file that needs more is rejected"
    )
    seconds: Operational[float] = Field(
        300.0, ge=1, le=86_400, description="longest time for some rows of a file, in seconds; then it is rejected"
    )


class AddressesConfig(Settings):
    """How lists of addresses are downloaded, with img2dataset."""

    program: Operational[str] = Field(
        "img2dataset", min_length=1, description="the program: its name on PATH, or its path"
    )
    column: str | None = Field(
        None, min_length=1, description="column with the addresses; null: url, image_url or url_link"
    )
    allow_private: bool = Field(
        False, description="whether addresses may lead into this machine's own network; others are rejected"
    )
    batch: Operational[int] = Field(1000, ge=1, le=10_000, description="addresses that are downloaded in one go")
    threads: Operational[int] = Field(32, ge=1, le=1024, description="downloads at the same time")
    timeout: int = Field(10, ge=1, le=3600, description="longest wait for a server, in seconds")
    retries: int = Field(1, ge=0, le=100, description="further attempts for each address")


class IngestConfig(Settings):
    """Where the images are, which of them to use, and into how many groups to divide them."""

    source: str | None = Field(None, min_length=1, description=_PLACE)
    sources: tuple[SourceConfig, ...] = Field(
        (),
        max_length=36,  # a shard has a digit of base 36 for the repeats of each sample
        description=(
            "several such places instead of ingest.source, each with its settings, or only its address; of equal "
            "images in several places one is kept, and each image stands once in an epoch if nothing else is said"
        ),
    )
    layout: Layout = Field(
        "auto",
        description=(
            "how the images are stored: folder (image files with captions beside them), imagefolder (the same with "
            "metadata.jsonl or metadata.csv), webdataset (.tar files of images and captions), parquet (.parquet and "
            ".arrow files, as Hugging Face's data sets are), hdf5 (.h5 and .hdf5, such as Fashion-Gen), addresses "
            "(lists in .txt, .csv, .tsv, .json, .jsonl or .parquet, which img2dataset downloads), or auto to find out, "
            "which never downloads"
        ),
    )
    lanes: int = Field(1, ge=1, le=50, description="number of lanes that caption and encode groups in parallel")
    group_images: int = Field(
        20_000, ge=1, le=1_000_000, description="approximate upper limit of images per group; bounds memory"
    )
    extensions: tuple[str, ...] = Field(
        (
            *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
            *(".heic", ".heif", ".jxl"),
        ),
        min_length=1,
        description="file name endings of images, in lower case with the dot; .JPG matches .jpg",
    )
    mask_endings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (".mask", "-masklabel", "_mask"),
        description=(
            "how the name of an image's mask goes on before its ending: with .mask, a.mask.png is the mask of a.jpg; "
            "if there is no a.jpg, it is an image"
        ),
    )
    caption_fields: tuple[str, ...] = Field(
        (
            *("text", "caption", "captions", "prompt", "caption_text", "description"),
            *("alt_text", "alt", "title", "tags", "tag_string"),
        ),
        description=(
            "names under which metadata and JSON files have captions; the first in this order that has one counts; "
            "upper and lower case are the same"
        ),
    )
    rows: RowsConfig = Field(RowsConfig(), description="which columns of Parquet, Arrow and HDF5 files are read")
    addresses: AddressesConfig = Field(AddressesConfig(), description="how lists of addresses are downloaded")
    limits: ImageLimits = Field(ImageLimits(), description="which image sizes are accepted")
    allowed_licenses: tuple[str, ...] = Field(
        (),
        description="licences to accept, as the metadata write them, such as CC-BY-4.0; [] accepts all",
    )
    unknown_license: Literal["keep", "reject"] | None = Field(
        None,
        description=(
            "keep or reject images whose metadata name no licence; null: reject if allowed_licenses is set, else keep"
        ),
    )
    max_rejected: Operational[float | None] = Field(
        0.5,
        gt=0,
        le=1,
        description=(
            "largest share of the images that may be rejected, by this or a later step; above it the run stops and "
            "says why; 1 or null goes on with the others"
        ),
    )
    readers: int = Field(8, ge=1, le=256, description="number of files read at the same time")

    @field_validator("sources", mode="before")
    @classmethod
    def _addresses_are_places(cls, sources: Any) -> Any:
        """Accept an address alone as a place."""
        several = sources if isinstance(sources, list | tuple) else [sources]
        return [{"source": one} if isinstance(one, str) else one for one in several if one is not None]

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if self.source is not None and self.sources:
            raise ValueError(f".source ({self.source!r}) and .sources are both set; remove one of them")
        if self.source is None and not self.sources:
            raise ValueError(f".source: missing; {_PLACE}; .sources has several")
        weights = [one.weight for one in self.sources]
        if None in weights and weights != [None] * len(weights):
            raise ValueError(".sources: some have a weight and some have none; give all of them one, or none")
        return self

    @field_validator("extensions")
    @classmethod
    def _lower_with_dot(cls, extensions: tuple[str, ...]) -> tuple[str, ...]:
        for extension in extensions:
            if not extension.startswith(".") or extension != extension.lower():
                raise ValueError(f"{extension!r} must begin with a dot and be lower-case, such as '.jpg'")
        return extensions

    @field_validator("caption_fields", "mask_endings")
    @classmethod
    def _lower(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.lower() for name in names)

    @field_validator("allowed_licenses", mode="before")
    @classmethod
    def _numbers_are_names(cls, licenses: Any) -> Any:
        """Accept numbers as names, since COCO and others number their licences."""
        if not isinstance(licenses, list | tuple):
            return licenses
        return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in licenses]

    @property
    def outcome(self) -> dict[str, Any]:
        """All settings that decide the records of a source, as JSON."""
        others: dict[str, Any] = {
            **dict.fromkeys(("source", "sources", "readers", "max_rejected"), True),
            "rows": {"isolated", "memory_gib", "seconds"},
            "addresses": {"program", "batch", "threads"},
        }
        return self.model_dump(mode="json", exclude=others)

    def source_id(self, url: str) -> str:
        """Return the name under which a workdir keeps the records of the source at a URL.

        It covers the settings: two runs on one source with different ones never write into one folder.
        """
        return short([url, self.outcome])

    @property
    def places(self) -> tuple[str, ...]:
        """Where the images are."""
        return tuple(one.source for one in self.sources) if self.source is None else (self.source,)

    @property
    def members(self) -> tuple[IngestConfig, ...]:
        """The settings for each place alone."""
        if self.source is not None:
            return (self,)
        return tuple(
            self.model_copy(update={"source": one.source, "layout": one.layout or self.layout, "sources": ()})
            for one in self.sources
        )

    def records_id(self, urls: Sequence[str]) -> str:
        """Return the name of all records, of one source or of a union, whose sources have these URLs."""
        ids = [member.source_id(url) for member, url in zip(self.members, urls, strict=True)]
        if self.source is not None:
            return ids[0]
        of_each = zip(ids, self.sources, strict=True)
        return short(["union", self.outcome, [[source_id, one.repeats, one.weight] for source_id, one in of_each]])

    @property
    def keeps_unknown(self) -> bool:
        """Whether images without a licence are kept."""
        return not self.allowed_licenses if self.unknown_license is None else self.unknown_license == "keep"
