"""Digests name what is on disk, so a value's digest never changes: the known ones here were computed by other tools."""

from __future__ import annotations

import hashlib
from math import inf, nan
from pathlib import Path

import pytest

from components.digests import canonical_json, digest, digest_file, digest_tree, sha256, short

VALUE = {"b": [1, 2.5, None], "a": {"ü": True}}
# printf '{"a":{"\\u00fc":true},"b":[1,2.5,null]}' | sha256sum
VALUE_DIGEST = hashlib.sha256(b'{"a":{"\\u00fc":true},"b":[1,2.5,null]}').hexdigest()


def test_one_value_has_one_form_whatever_the_order_of_its_keys() -> None:
    assert canonical_json(VALUE) == b'{"a":{"\\u00fc":true},"b":[1,2.5,null]}'
    assert canonical_json(dict(reversed(VALUE.items()))) == canonical_json(VALUE)


@pytest.mark.parametrize("number", [nan, inf, -inf])
def test_what_json_does_not_have_has_no_form(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([number])


def test_a_digest_is_sha_256_and_a_short_one_its_first_sixteen_digits() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(VALUE) == VALUE_DIGEST
    assert short(VALUE) == VALUE_DIGEST[:16]
    assert short(VALUE, 40) == VALUE_DIGEST[:40]


def test_a_tree_s_digest_is_of_names_and_bytes_of_the_named_folders_alone(tmp_path: Path) -> None:
    def tree(name: str, **files: str) -> Path:
        for file, text in files.items():
            path = tmp_path / name / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    one = tree("one", unet__config="a", unet__deep__weights="b", vae__config="c")
    assert digest_file(one / "unet/config") == sha256(b"a")
    expected = digest({"unet/config": sha256(b"a"), "unet/deep/weights": sha256(b"b")})
    assert digest_tree(one, ["unet"]) == expected
    other_name = tree("two", unet__config="a", unet__deep__weight="b")
    other_bytes = tree("three", unet__config="a", unet__deep__weights="B")
    assert len({expected, digest_tree(other_name, ["unet"]), digest_tree(other_bytes, ["unet"])}) == 3
    assert digest_tree(one, ["unet", "vae"]) == digest_tree(one, ["vae", "unet"]) != expected
