"""Lists of addresses are downloaded by img2dataset; what is bad in them, and what fails, is rejected by row."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components.errors import ConfigError, DataError, ImageRejected, StorageError
from components.image.rejections import FIXES
from components.image.sources import open_images
from components.ingest.imports import address_checks
from components.ingest.imports.address_checks import check_address
from tests.bad_rows import parquet
from tests.images import image_bytes, put
from tests.stores.memory import MemoryStorage
from tests.unit.ingest.test_rows import Imported

HOST = "http://93.184.215.14"  # public, and never asked
URLS = [f"{HOST}/{number}.png" for number in range(3)]

# What img2dataset 1.47 writes, with images from beside this program: their names are those of the addresses.
PROGRAM = """\
#!{python}
import io, json, os, pathlib, sys, tarfile
import pyarrow as pa, pyarrow.parquet as pq
here = pathlib.Path(__file__).parent
options = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
(here / "started.jsonl").open("a").write(json.dumps([options, sorted(os.environ)]) + "\\n")
output = pathlib.Path(options["output_folder"])
rows = [json.loads(line)["url"] for line in open(options["url_list"])]
fields = ("width", "height", "original_width", "original_height", "sha256")
table = []
with tarfile.open(output / "00000.tar", "w") as tar:
    for number, url in reversed(list(enumerate(rows))):
        row = dict.fromkeys(fields) | {{"url": url, "key": f"{{number:08d}}", "status": "failed_to_download"}}
        row["error_message"] = "HTTP Error 404: Not Found"
        if "robots" in url:
            row["error_message"] = "Use of image disallowed by X-Robots-Tag directive"
        image = here / url.rpartition("/")[2]
        if image.exists():
            row |= {{"status": "success", "error_message": None}}
            for ending, data in (("jpg", image.read_bytes()), ("json", json.dumps(row, indent=4).encode())):
                member = tarfile.TarInfo(f"{{row['key']}}.{{ending}}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        table.append(row)
pq.write_table(pa.Table.from_pylist(table), output / "00000.parquet")
(output / "00000_stats.json").write_text("{{}}")
{last}
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Returns the path of a program that stands for img2dataset, given its last line."""
    folder = tmp_path / "program"
    for number in range(3):
        put(folder / f"{number}.png", image_bytes(number), None)

    def write(last: str = "") -> str:
        path = put(folder / "img2dataset", PROGRAM.format(python=sys.executable, last=last).encode(), None)
        path.chmod(0o755)
        return str(path)

    return write


def read(place: Path, program: str, rows: Mapping[str, Any] | None = None, **addresses: Any) -> Imported:
    settings = {"layout": "addresses", "rows": rows or {}, "addresses": {"program": program, **addresses}}
    return Imported(str(place), MemoryStorage(f"addresses-{place}"), **settings)


WORDS = [("a", URLS[0]), ("b, with a comma", URLS[1]), ("c", URLS[2])]
LISTS: Mapping[str, Callable[[], bytes]] = {
    "txt": lambda: "\n\n".join(URLS).encode(),
    "csv": lambda: b"caption,url\n" + b"".join(f'"{words}",{url}\n'.encode() for words, url in WORDS),
    "tsv": lambda: b"TEXT\tURL\n" + b"".join(f"{words}\t{url}\n".encode() for words, url in WORDS),
    "json": lambda: json.dumps([{"url": url, "caption": words} for words, url in WORDS]).encode(),
    "jsonl": lambda: b"".join(json.dumps({"image_url": url, "text": words}).encode() + b"\n" for words, url in WORDS),
    "parquet": lambda: parquet(pa.table({"url": URLS, "caption": [words for words, _ in WORDS], "x": [1, 2, 3]})),
}


@pytest.mark.parametrize("ending", LISTS)
def test_each_kind_of_list_is_read(tmp_path: Path, program: Callable[[str], str], ending: str) -> None:
    place = put(tmp_path / f"list.{ending}", LISTS[ending](), None)
    made = read(place, program(""))
    assert made.captions() == (["-"] * 3 if ending == "txt" else [words for words, _ in WORDS])
    source = open_images(made.manifest, made.work)
    assert [source.read(image.name) for image in made.images()] == [image_bytes(number) for number in range(3)]
    assert [image.source for image in made.images()] == URLS
    again = read(place, "/bin/false")  # nothing is downloaded twice
    assert (again.result["images"], again.result["read"]) == (3, 0)


def test_what_fails_is_rejected_by_its_row(tmp_path: Path, program: Callable[[str], str]) -> None:
    rows = [
        "not an address",
        "ftp://a.example/b",
        f"{HOST}/gone.png",
        URLS[1],
        f"{HOST}/robots.png",
        "http://[::1",
        "https://",
    ]
    rows += [
        "http://user:secret@93.184.215.14/0.png",
        "http://169.254.169.254/latest/meta-data/iam",
        URLS[0],
        "file:///etc/passwd",
    ]
    place = put(tmp_path / "list.csv", "\n".join(["url", *rows]).encode(), None)
    made = read(place, program(""), batch=2)
    assert [image.source for image in made.images()] == [URLS[1], URLS[0]]
    broken, private = "address-broken", "address-private"
    reasons = [
        broken,
        broken,
        "download-failed",
        None,
        "download-disallowed",
        broken,
        broken,
        broken,
        private,
        None,
        broken,
    ]
    assert made.reasons() == {f"list.csv:{row}": reason for row, reason in enumerate(reasons) if reason is not None}
    assert all(one.reason in FIXES and "secret" not in one.detail for one in made.rejections())
    assert "404" in made.rejections()[2].detail or any("404" in one.detail for one in made.rejections())


def test_the_program_gets_no_credentials_and_no_shell(
    tmp_path: Path, program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    path = program("")
    read(put(tmp_path / "$(reboot).txt", f"{URLS[0]}\n{HOST}/$(reboot);`id`\n".encode(), None), path)
    options, environment = json.loads((tmp_path / "program/started.jsonl").read_text())
    assert not any("AWS" in name for name in environment)
    assert "HTTPS_PROXY" in environment
    assert (options["disable_all_reencoding"], options["resize_mode"], options["input_format"]) == (
        "True",
        "no",
        "jsonl",
    )
    assert "disallowed_header_directives" not in options  # as img2dataset is by default: they are respected


def test_a_list_that_breaks_keeps_what_came_before(tmp_path: Path, program: Callable[[str], str]) -> None:
    lines = [json.dumps({"url": url}) for url in URLS[:2]] + [
        "{",
        json.dumps({"words": "no address"}),
        json.dumps({"url": URLS[2]}),
    ]
    made = read(put(tmp_path / "list.jsonl", "\n".join(lines).encode(), None), program(""))
    assert made.result["images"] == 2
    assert made.reasons() == {"list.jsonl:2": "metadata-broken", "list.jsonl": "table-columns"}


BAD_LISTS = {
    "nothing": ("txt", b"", "no image can be used"),
    "no column": ("csv", b"a,b\n1,2\n", "its columns are 'a, b'; one must be url"),
    "utf-16": ("txt", URLS[0].encode("utf-16"), "save the list as UTF-8"),
    "an object": ("json", b'{"url": 1}', "a JSON dict, expected a list"),
    "deep json": ("json", b"[" * 100_000, "not JSON"),
    "numbers": ("json", b'[1, {"url": 7}, {"url": null}]', "1 × table-broken"),
    "no parquet": ("parquet", b"words", "1 × table-broken"),
}


@pytest.mark.parametrize("kind", BAD_LISTS)
def test_a_bad_list_is_a_clear_error(tmp_path: Path, kind: str) -> None:
    ending, data, expected = BAD_LISTS[kind]
    with pytest.raises(DataError) as caught:
        read(put(tmp_path / f"list.{ending}", data, None), "/bin/false")
    assert expected in str(caught.value)


def test_a_program_that_fails_or_is_missing_is_named(tmp_path: Path, program: Callable[[str], str]) -> None:
    place = put(tmp_path / "list.txt", URLS[0].encode(), None)
    with pytest.raises(ConfigError, match=r"'img3dataset' is not installed.*pipx install img2dataset"):
        read(place, "img3dataset")
    with pytest.raises(StorageError, match=r"has failed \(exit code 3\).*It said: 'no space'"):
        read(place, program("print('no space'); sys.exit(3)"))
    assert read(place, program("")).result["images"] == 1


def test_nothing_is_downloaded_unless_that_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "list.txt", URLS[0].encode(), None)
    with pytest.raises(DataError, match=r"ingest.layout=addresses"):
        Imported(str(tmp_path / "list.txt"), MemoryStorage("addresses-auto"))


PRIVATE = [
    *("http://127.0.0.1/a", "http://localhost:80/a", "http://10.1.2.3", "http://[::1]/", "http://192.168.0.1/"),
    *(
        "http://169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://0/",
        "http://127.1/",
    ),
    *(
        "http://2130706433/",
        "http://0x7f000001/",
        "http://metadata.google.internal/",
        "https://kubernetes.default.svc/",
    ),
    *(
        "http://a.localhost/",
        "http://LOCALHOST./",
        "http://[64:ff9b::7f00:1]/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
    ),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_rejected_unless_allowed(address: str) -> None:
    with pytest.raises(ImageRejected) as caught:
        check_address(address, allow_private=False)
    assert caught.value.reason == "address-private"
    assert check_address(address, allow_private=True) == address


def test_a_name_that_leads_to_a_private_address_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"inside.example": "10.0.0.7", "outside.example": "93.184.215.14"}
    found = lambda host, *_, **__: [(0, 0, 0, "", (answers[host], 0))]  # noqa: E731 - stands for the DNS
    monkeypatch.setattr(socket, "getaddrinfo", found)
    address_checks._private.cache_clear()
    with pytest.raises(ImageRejected, match=r"leads to 10.0.0.7"):
        check_address("http://inside.example/a.png", allow_private=False)
    assert check_address(" https://outside.example/a.png?b=1,2 ", allow_private=False).startswith("https://outside")
    address_checks._private.cache_clear()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server on this machine; its image 2.png is not for training."""
    for number in range(3):
        put(tmp_path / f"served/{number}.png", image_bytes(number), None)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            if "2.png" in self.path:
                self.send_header("X-Robots-Tag", "noai")
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    handler = partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.skipif(shutil.which("img2dataset") is None, reason="img2dataset is not on PATH")
def test_img2dataset_itself_downloads(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    rows = "".join(f"{server}/{number}.png,words {number}\n" for number in (0, 1, 2, 9))
    place = put(tmp_path / "list.csv", f"url,caption\n{rows}".encode(), None)
    made = read(place, "img2dataset", allow_private=True, retries=0)
    assert made.captions() == ["words 0", "words 1"]
    assert made.reasons() == {"list.csv:2": "download-disallowed", "list.csv:3": "download-failed"}
    source = open_images(made.manifest, made.work)
    assert [source.read(image.name) for image in made.images()] == [image_bytes(number) for number in range(2)]
