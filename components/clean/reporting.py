"""The data report: what was counted and chosen becomes one page, its summary and its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from components.clean.config import CleanConfig
from components.clean.histograms import aspects, histogram
from components.clean.sheets import Sheet, read_sheets, read_worst_fits
from components.clean.tally import LENGTHS, SIDES, Tally
from components.html.badges import Badge
from components.html.formatting import count, in_markdown, number, one_line, percent, plural
from components.html.templates import environment
from components.image.filters import CHECKS, FilterConfig, is_on
from components.image.records import Manifest
from components.image.sources import open_images
from components.image.union import UnionMember, rates_of, shares_of
from components.storage.base import Storage

PAGE, SUMMARY, NUMBERS = "report.html", "report.md", "report.json"
REPORT_KEYS = (PAGE, SUMMARY, NUMBERS)
# The badge is green up to the first share of rejected images, and red above the second.
FEW, MANY = 0.05, 0.5
# Reasons of rejection in the headline, at most.
REASONS = 3


def write_report(
    config: CleanConfig,
    filters: FilterConfig,
    tally: Tally,
    manifest: Manifest,
    caption_set: str,
    workdir: Storage,
    captions: Storage,
) -> None:
    """Write ``report.html``, ``report.md`` and ``report.json`` into the caption set's folder.

    Args:
        config: How much to show.
        filters: The thresholds that were applied.
        tally: The counts, and the images to show.
        manifest: What ingest has counted, and where the images on the contact sheets are.
        caption_set: Name of the caption set.
        workdir: Where the manifest is from.
        captions: The storage at its folder.
    """
    images = partial(open_images, manifest, workdir)
    numbers = {"source": manifest.source, "caption_set": caption_set, **tally.numbers(config.words)}
    numbers |= {"masks": manifest.masks, "other_files": dict(manifest.other_files)}
    numbers["sources"] = _sources(manifest.members, tally)
    numbers["filters"] = _thresholds(config, filters)
    reasons = [tally.reasons[row["step"], row["reason"]].shown for row in numbers["rejected"][: config.reasons]]
    kept, *rejected = read_sheets(images, [tally.shown, *reasons], config.tile_side)
    worst = read_worst_fits(images, tally.fits.worst if tally.fits is not None else [], config.tile_side)
    captions.write(NUMBERS, json.dumps(numbers, indent=1, allow_nan=False).encode())
    captions.write(SUMMARY, summary(numbers).encode())
    captions.write(PAGE, page(numbers, kept, rejected, worst).encode())


def _sources(members: Sequence[UnionMember], tally: Tally) -> list[dict[str, Any]]:
    """Return what is kept of each source, how often its images stand in an epoch, and its share of one."""
    kept = [tally.kept_of[member.label] for member in members]
    rows = zip(members, kept, rates_of(members, kept), shares_of(members, kept), strict=True)
    return [
        {
            "label": member.label,
            "source": member.source,
            "kept": images,
            "rejected": tally.rejected_of[member.label],
            "repeats": round(float(repeats), 4),
            "share": round(float(share), 6),
        }
        for member, images, repeats, share in rows
    ]


def page(numbers: Mapping[str, Any], kept: Sheet, rejected: list[Sheet], worst: Sheet) -> str:
    """Return the whole page as HTML; all text is escaped.

    Args:
        numbers: The numbers of ``report.json``.
        kept: Images that are kept.
        rejected: Images that were rejected, one sheet per reason, in the order of the reasons.
        worst: Kept images that fit their bucket worst.
    """
    template = environment(Path(__file__).parent).get_template("report.html")
    columns, firsts = _print(kept)
    return template.render(
        n=numbers,
        badge=badge(numbers),
        headline=headline(numbers),
        figures=figures(numbers),
        besides=besides(numbers),
        columns=columns,
        firsts=firsts,
        kept=kept,
        worst=worst,
        sheets=list(zip(numbers["rejected"], rejected, strict=False)),
        charts=_charts(numbers) if numbers["kept"] else [],
        cut=cut_captions(numbers),
    )


def summary(numbers: Mapping[str, Any]) -> str:
    """Return the numbers that matter as Markdown, for places that show no page; all text is escaped."""
    lines = ["# Data", "", in_markdown(headline(numbers)), "", "| | | |", "|---|---:|---|"]
    lines += [f"| {label} | {value} | {note} |" for label, value, note in figures(numbers)]
    if numbers["rejected"]:
        lines += ["", "| rejected because | images | threshold |", "|---|---:|---:|"]
    for row in numbers["rejected"]:
        bound = "" if row["threshold"] is None else number(row["threshold"])
        lines.append(f"| {in_markdown(row['reason'])} | {count(row['images'])} | {bound} |")
    if numbers["sources"]:
        lines += ["", "| source | kept | rejected | repeats | of an epoch |", "|---|---:|---:|---:|---:|"]
    for row in numbers["sources"]:
        cells = (count(row["kept"]), count(row["rejected"]), number(row["repeats"]), percent(row["share"]))
        lines.append(f"| {in_markdown(row['source'])} | {' | '.join(cells)} |")
    lines += ["", *(f"- {count(files)} {in_markdown(what)}" for files, what in besides(numbers))]
    if cut := cut_captions(numbers):
        lines += ["", in_markdown(cut)]
    words = ", ".join(in_markdown(word) for word, _ in numbers["words"][:20])
    return "\n".join([*lines, "", f"Most frequent words: {words or 'none'}", ""])


def badge(numbers: Mapping[str, Any]) -> Badge:
    """Return how many images were kept; it is only good if hardly any was rejected."""
    kept, images = numbers["kept"], numbers["images"]
    rejected = 1 - kept / images if images else 1.0
    kind = "good" if rejected <= FEW else "fair" if rejected <= MANY else "bad"
    return Badge(kind, f"{count(kept)} kept" if kept == images else f"{count(kept)} of {count(images)} kept")


def headline(numbers: Mapping[str, Any]) -> str:
    """Return how many images were kept and rejected, and the commonest reasons, in one sentence."""
    if not numbers["images"]:
        return "No images were found."
    rejected = numbers["images"] - numbers["kept"]
    if not rejected:
        return f"All of {plural(numbers['images'], 'image')} can be trained on."
    kept = f"{count(numbers['kept'])} of {plural(numbers['images'], 'image')} can be trained on"
    reasons = [f"{one_line(row['reason'])} {count(row['images'])}" for row in numbers["rejected"]]
    more = f", and {plural(len(reasons) - REASONS, 'more reason')}" if len(reasons) > REASONS else ""
    why = f"{', '.join(reasons[:REASONS])}{more}"
    return f"{kept}, {count(rejected)} {'was' if rejected == 1 else 'were'} rejected: {why}."


def figures(numbers: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the numbers that matter most: name, value, and what to compare it with."""
    kept, images = numbers["kept"], numbers["images"]
    reasons = len(numbers["rejected"])
    licensed = kept - sum(times for name, times in numbers["licenses"] if not name)
    return [
        ("Images found", count(images), "exact duplicates among them"),
        ("Kept", count(kept), percent(kept / images) if images else ""),
        ("Rejected", count(images - kept), f"for {plural(reasons, 'reason')}" if reasons else ""),
        ("Captions", count(numbers["captions"]), f"{number(numbers['captions'] / kept)} per image" if kept else ""),
        *_fit_figures(numbers["buckets"]),
        ("Median caption", _median(numbers["caption_words"]), "words"),
        ("Licence known", percent(licensed / kept) if kept else count(None), "of the images kept"),
    ]


def besides(numbers: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return what else was in the source, and what was done about it: how many, and of what."""
    unused = numbers["unused_captions"]
    rows = [
        (numbers["transparent"], "kept images with transparent pixels, which are put on white"),
        (numbers["masks"], "images with a mask, which is recorded with them"),
        (unused["images"], f"kept images whose own caption could not be used (such as {unused['example']})"),
    ]
    others = sorted(numbers["other_files"].items(), key=lambda item: (-item[1], item[0]))
    rows += [(files, f"other files: {kind}") for kind, files in others]
    return [(files, what) for files, what in rows if files]


def cut_captions(numbers: Mapping[str, Any]) -> str:
    """Return what is known of captions that the text encoder will cut, and where the rest will be known."""
    cut = numbers["surely_cut"]
    if cut is None or not numbers["captions"]:
        return ""
    reads = f"The text encoder reads {cut['tokens']} tokens of a caption; a word is one token or several."
    longer = f"{count(cut['captions'])} of {plural(numbers['captions'], 'caption')} have more words, so they are cut; "
    if not cut["captions"]:
        longer = "No caption has more words; "
    counted = "all that are cut are counted with the model's tokenizer, in the run's report and the model card."
    return f"{reads} {longer}{counted} latents.text_chunks reads more of each."


def _fit_figures(buckets: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return what is cropped away and how many images are enlarged, over all buckets."""
    if not buckets:
        return []
    images = sum(row["images"] for row in buckets)
    cropped, enlarged = (sum(row[name] * row["images"] for row in buckets) for name in ("cropped_away", "enlarged"))
    largest = max(row["largest_enlargement"] for row in buckets)
    how_far = f"images, {number(largest)} times at most" if round(enlarged) else "images"
    return [
        ("Cropped away", percent(cropped / images), "of an image, on average"),
        ("Enlarged", count(round(enlarged)), how_far),
    ]


def _median(columns: list[list[Any]]) -> str:
    half = sum(times for _, times in columns) / 2
    for name, times in columns:
        half -= times
        if half <= 0 < times:
            return str(name)
    return count(None)


def _print(kept: Sheet) -> tuple[int, Sheet]:
    """Return how many images stand in a row, and the first images in full rows; none if they are too few."""
    shown = [one for one in kept if one.tile is not None][:15]
    columns = 5 if len(shown) >= 10 else 3
    return columns, shown[: len(shown) // columns * columns]


def _charts(numbers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    sides, words = numbers["shorter_sides"], numbers["caption_words"]
    return [
        ("Shorter side in pixels", histogram(sides, SIDES, "Images by their shorter side, in pixels")),
        ("Width to height", aspects(numbers["aspects"])),
        ("Words per caption", histogram(words, LENGTHS, "Captions by their number of words")),
    ]


def _thresholds(config: CleanConfig, filters: FilterConfig) -> list[dict[str, Any]]:
    """Return the setting of each filter; its threshold is None if the filter is off."""
    thresholds: list[dict[str, Any]] = [
        {
            "reason": check.reason,
            "measure": check.score,
            "setting": f"caption.filters.{check.setting}",
            "takes": "at least" if check.is_minimum else "at most",
            "threshold": check.threshold(filters) if is_on(check.score, filters) else None,
        }
        for check in CHECKS
    ]
    distance = None if config.max_distance is None else config.max_distance + 1
    duplicate = {"reason": "near-duplicate", "measure": "bits that differ", "setting": "clean.max_distance"}
    return [*thresholds, {**duplicate, "takes": "at least", "threshold": distance}]
