"""A real S3 store for tests: OpenStack Swift with its s3api, all four servers in this one process, on one folder.

    python tests/stores/swift_cluster.py FOLDER

It prints the port of the S3 endpoint once it answers, and ends when its standard input does: so it never outlives the
tests that started it, however they end. Accounts, containers and objects are as in a real cluster, on disk, with one
replica; only the daemons that repair and replicate are left out. The user is ``test:tester`` with the key ``testing``.

Needs ``pip install swift`` and a file system with extended attributes, where Swift keeps the metadata of its objects.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import eventlet
import eventlet.wsgi
from swift.common import utils, wsgi
from swift.common.http_protocol import SwiftHttpProtocol
from swift.common.ring import RingBuilder
from swift.common.utils.logs import NullLogger

# As swift.common.wsgi.run_server, which serves one application per process, has it; S3 clients insist on "ETag".
HTTP = {"protocol": SwiftHttpProtocol, "capitalize_response_headers": False}
LOCALHOST = "127.0.0.1"
STORAGE = ("account", "container", "object")
CLUSTER = """
[swift-hash]
swift_hash_path_suffix = darkroom
"""
SERVER = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
log_level = CRITICAL

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""
PROXY = """
[DEFAULT]
swift_dir = {folder}
log_level = CRITICAL

[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck s3api tempauth bulk slo dlo versioned_writes proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true

[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
"""


def main(folder: Path) -> None:
    """Serve until standard input ends."""
    # A real thread of the operating system, started before eventlet replaces the threading module.
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    utils.monkey_patch()
    sockets = {kind: eventlet.listen((LOCALHOST, 0)) for kind in (*STORAGE, "proxy")}
    _write_cluster(folder, {kind: sockets[kind].getsockname()[1] for kind in STORAGE})
    for kind, socket in sockets.items():
        conf = folder / f"{kind}.conf"
        conf.write_text((PROXY if kind == "proxy" else SERVER).format(folder=folder, kind=kind))
        app = wsgi.loadapp(str(conf), {"log_name": kind})
        eventlet.spawn(eventlet.wsgi.server, socket, app, NullLogger(), **HTTP)
    print(sockets["proxy"].getsockname()[1], flush=True)  # noqa: T201 - the process that started this one reads it
    while True:
        eventlet.sleep(3600)


def _end_with_the_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # nothing has to be cleaned up


def _write_cluster(folder: Path, ports: dict[str, int]) -> None:
    """Write what all servers read: the hash suffix, and for each kind the ring with the devices of all data."""
    (folder / "devices" / "disk").mkdir(parents=True)
    (folder / "swift.conf").write_text(CLUSTER)
    for kind, port in ports.items():
        ring = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
        ring.add_dev({"region": 1, "zone": 1, "weight": 1, "ip": LOCALHOST, "port": port, "device": "disk"})
        ring.rebalance(seed=1)
        ring.get_ring().save(str(folder / f"{kind}.ring.gz"))
    utils.set_swift_dir(str(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
