"""What is in the way of a job: its warnings with their reasons, and since when it should have pods."""

from __future__ import annotations

import pytest

from pipeline.launch.diagnosis.obstacles import MAX_CHARACTERS, legible

DENIED = 'admission webhook "vjobset.kb.io" denied the request: spec.replicatedJobs: '


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("FailedScheduling: 0/9 nodes are available", "FailedScheduling: 0/9 nodes are available"),
        (
            f'{DENIED}Invalid value: [{{"name":"node"}}]: field is immutable',
            f"{DENIED}Invalid value: …: field is immutable",
        ),
        (f'{DENIED}Invalid value: [{{"name":"{"x" * 2000}'[:1021] + "...", f"{DENIED}Invalid value: …"),
        ("x" * 2000, "x" * (MAX_CHARACTERS - 1) + "…"),
        ("spec.count: Invalid value: 3: must be less than 2", "spec.count: Invalid value: 3: must be less than 2"),
    ],
)
def test_a_warning_is_shown_without_the_value_that_hides_its_reason(text: str, shown: str) -> None:
    assert legible(text) == shown
    assert len(shown) <= MAX_CHARACTERS
