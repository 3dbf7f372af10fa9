"""Settings of the ingest step."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from components.digests import short
from components.image.decoding import ImageLimits
from components.settings import Operational, Settings


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

    source: str = Field(
        min_length=1,
        description=(
            "folder of images, read recursively: a local path or s3://bucket/prefix; or a single file of images (.tar, "
            ".parquet, .arrow, .h5, .hdf5)"
        ),
    )
    layout: Literal["auto", "folder", "imagefolder", "webdataset", "parquet", "hdf5", "addresses"] = Field(
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
        how: dict[str, Any] = {
            "rows": {"isolated", "memory_gib", "seconds"},
            "addresses": {"program", "batch", "threads"},
        }
        return self.model_dump(mode="json", exclude={"source": True, "readers": True, "max_rejected": True, **how})

    def source_id(self, url: str) -> str:
        """Return the name under which a workdir keeps the records of the source at a URL.

        It covers the settings: two runs on one source with different ones never write into one folder.
        """
        return short([url, self.outcome])

    @property
    def keeps_unknown(self) -> bool:
        """Whether images without a licence are kept."""
        return not self.allowed_licenses if self.unknown_license is None else self.unknown_license == "keep"
