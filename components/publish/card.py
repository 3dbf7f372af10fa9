"""The model card: what a published model is, what was measured of it, and what it was made from.

Names, prompts and descriptions may hold anything, so all text is escaped. Neither a time nor the run's name is in
it, so the same model gets the same card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from components.html.formatting import SPACE, percent, plural, quantity
from components.model.metric_results import MetricResult, Metrics
from components.model.text_reading import AT_ONCE, TextReading, reading_of_record
from components.publish.config import PublishConfig

# CommonMark 0.31, section 2.4: a backslash takes the meaning from ASCII punctuation; these have one.
_MARKUP = re.compile(r"[\\`*_{}\[\]()<>#+\-.!|~&$:@^=]")

_PLAIN = re.compile(r"[\w ,.;:!?'()-]{1,1000}")

# What shaped the weights. Where the images came from and where the run ran are private.
_SECTIONS = ("seed", "model", "caption", "latents", "index", "train", "evaluate")


def render_card(
    name: str,
    version: str,
    config: PublishConfig,
    evaluation: Mapping[str, Any],
    metrics: Metrics,
    settings: Mapping[str, Any] | None,
) -> str:
    """Return the card as Markdown with a YAML head.

    Args:
        name: The model's name.
        version: The published version.
        config: Description and licence.
        evaluation: What ``evaluation.json`` says.
        metrics: What was measured, by name.
        settings: The run's settings by section, None if they were not kept.
    """
    parts = [
        _head(config),
        f"# {escape(name)}",
        escape(config.description),
        f"A Stable Diffusion model trained with Darkroom. Version `{version}`.",
        "## Use",
        _use(evaluation["prompts"], reading_of_record(evaluation)),
        "## Measured",
        _table(("metric", "value", "on real images", "what it is", "how it was computed"), _metric_rows(metrics)),
        _prompts(evaluation["prompts"], metrics),
        "## Made from",
        _table(("what", "value"), _origin_rows(evaluation)),
        *_captions(evaluation, settings),
        "## Settings",
        _settings(settings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line; what cannot be shown becomes a replacement character."""
    line = " ".join(text.split())
    shown = "".join(character if character.isprintable() else "\ufffd" for character in line)
    return _MARKUP.sub(r"\\\g<0>", shown)


def _head(config: PublishConfig) -> str:
    head = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": ["stable-diffusion", "darkroom"]}
    if config.license is not None:
        head["license"] = config.license
    # JSON on one line is YAML too, and quotes whatever needs quoting.
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---"])


def _use(prompts: Sequence[Mapping[str, Any]], reading: TextReading) -> str:
    """Return how to draw with it: the first prompt that is plain words, since code cannot be escaped for Markdown."""
    prompt = next((row["prompt"] for row in prompts if _PLAIN.fullmatch(row["prompt"])), "what to draw")
    if reading != AT_ONCE:
        return _use_embeddings(prompt, reading)
    return f"""\
```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("path/to/this/folder")
pipeline("{prompt}").images[0].save("drawn.png")
```"""


def _use_embeddings(prompt: str, reading: TextReading) -> str:
    """Return how to draw with a model that does not read prompts as diffusers does.

    The code does what `components.model.text_encoding` does. It is written out for ``clip_skip`` alone, too: diffusers
    looks for the layers where the text encoders of newer versions of transformers do not have them.
    """
    rows = "torch.tensor(rows, device=encoder.device)"
    states = f"encoder({rows}).last_hidden_state"
    how = []
    if reading.chunks > 1:
        how = [f"in {reading.chunks} chunks, each as long as its text encoder reads at once"]
    if reading.clip_skip:
        how.append(f"without the text encoder's last {plural(reading.clip_skip, 'layer')}")
        layer = f"encoder({rows}, output_hidden_states=True).hidden_states[-{reading.clip_skip + 1}]"
        states = f'getattr(encoder, "text_model", encoder).final_layer_norm({layer})'
    return f"""\
It reads prompts as it read the captions in training: {", and ".join(how)}.
diffusers does not do that, so give it the embeddings:

```python
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("path/to/this/folder")


@torch.no_grad()
def embed(text, chunks={reading.chunks}):
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    begin, end = tokenizer("").input_ids
    room = tokenizer.model_max_length - 2
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    parts = [ids[i * room : (i + 1) * room] for i in range(chunks)]
    rows = [[begin, *part, end] + [tokenizer.pad_token_id] * (room - len(part)) for part in parts]
    states = {states}
    return states.flatten(0, 1)[None]  # chunk behind chunk


prompt = "{prompt}"
pipeline(prompt_embeds=embed(prompt), negative_prompt_embeds=embed("")).images[0].save("drawn.png")
```"""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _metric_rows(metrics: Metrics) -> list[list[str]]:
    return [
        [
            escape(metric.label),
            _quantity(metric.value, metric) if metric.value is not None else f"not measured: {escape(metric.reason)}",
            _reference(metric),
            escape(f"{metric.description}; {metric.direction} is better"),
            escape(" ".join(f"{metric.estimator}; {metric.samples:,} generated images. {metric.caveat}".split())),
        ]
        for metric in metrics.values()
    ]


def _reference(metric: MetricResult) -> str:
    if metric.reference is None:
        return "–"
    return f"{_quantity(metric.reference, metric)} ({escape(metric.reference_label)})"


def _quantity(value: float | None, metric: MetricResult) -> str:
    return escape(quantity(value, metric.unit))


def _prompts(prompts: Sequence[Mapping[str, Any]], metrics: Metrics) -> str:
    """Return the prompts with the metrics that have a value for each."""
    names = [name for name in metrics if any(name in row["metrics"] for row in prompts)]
    rows = [
        [
            escape(row["prompt"]),
            str(row["images"]),
            *(_quantity(row["metrics"].get(name), metrics[name]) for name in names),
        ]
        for row in prompts
    ]
    return _table(("prompt", "images", *(escape(metrics[name].label) for name in names)), rows)


def _origin_rows(evaluation: Mapping[str, Any]) -> list[list[str]]:
    height, width = evaluation["size"]
    return [
        ["base model", escape(evaluation["base_model"])],
        ["optimizer step", str(evaluation["step"])],
        ["share of the base model in the weights", _base_share(evaluation.get("base_share"))],
        ["dataset digest", evaluation["dataset_digest"]],
        ["weights digest", evaluation["weights_sha256"]],
        ["image size", f"{width} × {height} pixels"],
    ]


def _base_share(share: float | None) -> str:
    if share is None:
        return "not recorded"
    return escape(f"less than 0.1{SPACE}%" if share < 0.001 else percent(share))


def _captions(evaluation: Mapping[str, Any], settings: Mapping[str, Any] | None) -> list[str]:
    """Return who wrote the captions, what was done to tags, and how many were cut; nothing if it was not recorded."""
    authors, lengths = evaluation.get("captions_by") or {}, evaluation.get("caption_lengths") or {}
    if not authors:
        return []
    rows = [[escape(who), f"{count:,}"] for who, count in authors.items()]
    cut = []
    if lengths:
        counts = f"{lengths['cut']:,} of {lengths['captions']:,}"
        cut = [f"Cut, since the text encoder reads {lengths['tokens']} tokens: {counts}."]
    return ["## Captions", _table(("written by", "captions"), rows), *cut, _tags(settings)]


def _tags(settings: Mapping[str, Any] | None) -> str:
    tags = ((settings or {}).get("caption") or {}).get("tags") or {}
    if not tags.get("shuffled") and not tags.get("dropout"):
        return ""
    return (
        f"Captions that are lists of tags: {max(tags['shuffled'], 1)} of each list, "
        f"{'shuffled' if tags['shuffled'] else 'in their order'} behind the first {tags['keep']}, "
        f"any other tag dropped with chance {tags['dropout']:g}."
    )


def _settings(settings: Mapping[str, Any] | None) -> str:
    if settings is None:
        return "They were not kept."
    kept = {section: settings[section] for section in _SECTIONS if section in settings}
    # In ASCII JSON no line can begin with a fence, so nothing in it can end the block.
    return f"```json\n{json.dumps(kept, indent=2, sort_keys=True)}\n```"
