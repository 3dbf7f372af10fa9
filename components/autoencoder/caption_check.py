"""Whether the base model's text encoders can read the captions: how many they cut off, and which become equal.

A text encoder reads a set number of tokens, in as many chunks as the settings say, and nothing behind them. If captions
that say different things become equal, the model cannot learn what tells their images apart, and nobody would notice:
so that is an error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from components.dataset.caption_lengths import CaptionLengths, read_caption_lengths, write_caption_lengths
from components.dataset.versions import records_of
from components.digests import digest, digest_tree, sha256
from components.errors import DataError, NotFound
from components.image.records import captions_key, captions_prefix, clean_rejections_key, read_accepted
from components.model.locations import encodable
from components.model.text_reading import MOST_CHUNKS
from components.storage.base import Storage

FORMAT = 2  # 1 counted the tokens for beginning and end
BATCH = 1024  # captions
# Captions that fill a text encoder and are compared with each other; some 200 bytes each. Of more, the rest is counted.
_MOST_COMPARED = 1_000_000
_SHOWN = 160  # characters of a caption in a message


class TokenLimit(NamedTuple):
    """How much of a caption a text encoder reads.

    Attributes:
        tokenizer: Its tokenizer.
        chunk: How many tokens it reads at once, those for beginning and end included.
        chunks: In how many chunks it reads a caption; each has a beginning and an end.
    """

    tokenizer: Any
    chunk: int
    chunks: int = 1

    @property
    def tokens(self) -> int:
        """How many tokens of a caption it reads."""
        return self.chunks * (self.chunk - 2)


def check_captions(
    base: Path,
    groups: Sequence[str],
    caption_set: str,
    encoding_key: str,
    workdir: Storage,
    *,
    reject_equal: bool,
    chunks: int = 1,
) -> CaptionLengths:
    """Return how many captions the text encoders of a base model cut off; counted again only if something changed.

    Args:
        base: A diffusers folder.
        groups: All partition groups of the source.
        caption_set: The captions, and which images are accepted.
        encoding_key: The dataset's folder, where the counts are kept.
        workdir: The storage of all files.
        reject_equal: Whether different captions that become equal are an error.
        chunks: In how many chunks a caption is read.

    Raises:
        DataError: If different captions become equal.
    """
    captions = workdir.child(captions_prefix(caption_set))
    records = records_of(workdir.child(f"datasets/{encoding_key}"), caption_set)
    parts = [part for part in ("tokenizer", "tokenizer_2") if (base / part).is_dir()]
    files = [_digest(captions, key(group)) for group in groups for key in (captions_key, clean_rejections_key)]
    made_from = digest([FORMAT, digest_tree(base, parts), list(groups), files, reject_equal, chunks])
    earlier = read_caption_lengths(records)
    if earlier is not None and earlier.made_from == made_from:
        return earlier
    lengths = count_tokens(token_limits(base, chunks), groups, captions, made_from, reject_equal=reject_equal)
    write_caption_lengths(records, lengths)
    return lengths


def token_limits(base: Path, chunks: int) -> list[TokenLimit]:
    """Return how much the text encoders of a diffusers folder, one or SDXL's two, read in some chunks."""
    from transformers import CLIPTokenizer

    limits = []
    for number in ("", "_2"):
        if (base / f"tokenizer{number}").is_dir():
            tokenizer = CLIPTokenizer.from_pretrained(base / f"tokenizer{number}", local_files_only=True)
            config = json.loads((base / f"text_encoder{number}" / "config.json").read_bytes())
            at_once = min(tokenizer.model_max_length, config["max_position_embeddings"])
            limits.append(TokenLimit(tokenizer, at_once, chunks))
    return limits


def count_tokens(
    limits: Sequence[TokenLimit], groups: Sequence[str], captions: Storage, made_from: str, *, reject_equal: bool
) -> CaptionLengths:
    """Count the captions that are cut off, and compare those that fill the text encoders.

    Args:
        limits: The tokenizers.
        groups: All partition groups of the source.
        captions: The caption set's folder.
        made_from: Digest of what the counts depend on, to be kept with them.
        reject_equal: Whether different captions that become equal are an error.

    Raises:
        DataError: If different captions become equal.
    """
    count, cut = 0, dict.fromkeys(groups, 0)
    filling: dict[bytes, str] = {}
    equal: list[tuple[str, str]] = []
    for group in groups:
        texts = Counter(caption.text for image in read_accepted(captions, group) for caption in image.captions)
        count += texts.total()
        for text, ids, is_cut in _read_by(limits, list(texts)):
            cut[group] += texts[text] * is_cut
            if ids is None:
                continue
            other = filling.setdefault(ids, text) if len(filling) < _MOST_COMPARED else filling.get(ids, text)
            if _plain(other) != _plain(text):
                equal.append((other, text))
    shortest = min(limits, key=lambda limit: limit.tokens)
    if equal and reject_equal:
        raise _equal_error(equal, shortest)
    return CaptionLengths(made_from, count, shortest.tokens, cut)


def _read_by(limits: Sequence[TokenLimit], texts: Sequence[str]) -> Iterator[tuple[str, bytes | None, bool]]:
    """Yield each caption, a digest of what is read of it if it fills the text encoders, and whether it is cut off."""
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        encodables = [encodable(text) for text in batch]
        ids = [limit.tokenizer(encodables, add_special_tokens=False, verbose=False).input_ids for limit in limits]
        for text, *of_text in zip(batch, *ids, strict=True):
            lengths = [(len(one), limit.tokens) for one, limit in zip(of_text, limits, strict=True)]
            read = None
            if all(length >= most for length, most in lengths):  # one that reads on tells the captions apart
                read = repr([one[:most] for one, (_, most) in zip(of_text, lengths, strict=True)]).encode()
            is_cut = any(length > most for length, most in lengths)
            yield text, blake2b(read, digest_size=16).digest() if read is not None else None, is_cut


def _plain(text: str) -> str:
    """Return what a caption says, whatever its case and spaces: tokenizers need not tell these apart."""
    return " ".join(text.casefold().split())


def _equal_error(equal: Sequence[tuple[str, str]], limit: TokenLimit) -> DataError:
    one, other = equal[0]
    more = ""
    if limit.chunks < MOST_CHUNKS:
        more = f"read them in more chunks of {limit.chunk} tokens (latents.text_chunks, now {limit.chunks}), "
    count = "1 caption" if len(equal) == 1 else f"{len(equal):,} captions"
    return DataError(
        f"the text encoder reads {limit.tokens} tokens of a caption, and {count} cannot "
        f"be told from another, such as {_around(one, other)!a} and {_around(other, one)!a}. "
        f"Shorten the captions (put what differs first), {more}use a model that reads more (from scratch: raise "
        "model.scratch.architecture.text.max_tokens), or set latents.equal_captions to keep"
    )


def _around(text: str, other: str) -> str:
    """Return a caption, or the part of a long one where it begins to differ from another."""
    if len(text) <= _SHOWN:
        return text
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    first = max(0, min(same - _SHOWN // 2, len(text) - _SHOWN))
    return f"{'…' * (first > 0)}{text[first : first + _SHOWN]}{'…' * (first + _SHOWN < len(text))}"


def _digest(storage: Storage, key: str) -> str | None:
    try:
        return sha256(storage.read(key))
    except NotFound:
        return None
