"""A small Ceph with an S3 gateway on this machine, for tests; nothing of it outlives `stop`.

    python scripts/ceph.py install          its Debian packages, if they miss and this is root
    python scripts/ceph.py start FOLDER     prints {"endpoint": …, "access_key": …, …} as JSON
    python scripts/ceph.py stop FOLDER      ends its three processes, by their ids

One monitor, one storage daemon that keeps everything in memory, one radosgw, on free loopback
ports. Needs the Debian packages ceph-mon, ceph-osd, radosgw and ceph-common. No authentication
inside (loopback only); the S3 keys are made anew at each start.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PACKAGES = ("ceph-mon", "ceph-osd", "radosgw", "ceph-common")
STEP_S = 60
REGION = "us-east-1"
BUCKET = "lockgate-tests"
MEMORY = 4 * 1024**3
CONFIG = """\
[global]
fsid = {fsid}
auth cluster required = none
auth service required = none
auth client required = none
mon host = v1:127.0.0.1:{mon}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = {memory}
mon allow pool delete = true
mon allow pool size one = true
mon data = {folder}/mon
osd data = {folder}/osd
osd heartbeat grace = 60
run dir = {folder}
pid file = {folder}/$name.pid
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
crash dir = {folder}/crash
keyring = {folder}/keyring
rgw frontends = beast endpoint=127.0.0.1:{rgw} tcp_nodelay=1
rgw data = {folder}/rgw
rgw enable usage log = false
rgw gc obj min wait = 5
rgw thread pool size = 32
"""


def main() -> None:
    """Does what the command line says."""
    if sys.argv[1:] == ["install"]:
        install()
        return
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.exit(__doc__)
    folder = Path(sys.argv[2]).resolve()
    if sys.argv[1] == "stop":
        stop(folder)
        return
    try:
        print(json.dumps(start(folder)))
    except BaseException:
        stop(folder)
        raise


def install() -> None:
    """Gets the packages with apt when root misses them; else does nothing."""
    given = "LOCKGATE_S3_ENDPOINT" in os.environ
    if given or all(map(shutil.which, PROGRAMS)) or os.geteuid() or not shutil.which("apt-get"):
        return
    print("installing Ceph's packages (half a minute to five)", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def start(folder: Path) -> dict[str, str]:
    """Starts the three daemons below `folder` and returns where and with which keys."""
    for name in ("mon", "osd", "rgw", "crash"):
        (folder / name).mkdir(parents=True)
    mon, rgw = free_port(), free_port()
    fsid = str(uuid.uuid4())
    (folder / "keyring").touch()
    values = {"fsid": fsid, "mon": mon, "rgw": rgw, "folder": folder, "memory": MEMORY}
    (folder / "ceph.conf").write_text(CONFIG.format(**values))
    address = f"[v1:127.0.0.1:{mon}]"
    run(folder, "monmaptool", "--create", "--addv", "a", address, "--fsid", fsid,
        str(folder / "monmap"))  # fmt: skip
    run(folder, "ceph-mon", "-i", "a", "--mkfs", "--monmap", str(folder / "monmap"))
    daemon(folder, "ceph-mon", "-i", "a")
    osd = str(uuid.uuid4())
    wait(folder, lambda: asked(folder, "osd", "new", osd) is not None, "the OSD to be known")
    run(folder, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    up = "1 up"
    bring_up(folder, lambda: up in (asked(folder, "osd", "stat") or ""), "ceph-osd", "-i", "0")
    gateway = ("radosgw", "-n", "client.rgw.a", "--no-mon-config")
    bring_up(folder, lambda: answers(rgw), *gateway)
    keys = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}
    run(folder, "radosgw-admin", "-n", "client.rgw.a", "--no-mon-config", "user", "create",
        "--uid", "test", "--display-name", "test",
        "--access-key", keys["access_key"], "--secret-key", keys["secret_key"])  # fmt: skip
    wait(folder, lambda: make_bucket(rgw, **keys), "the bucket to be made")
    endpoint = f"http://127.0.0.1:{rgw}"
    return {"endpoint": endpoint, "region": REGION, "bucket": BUCKET, **keys}


def make_bucket(port: int, access_key: str, secret_key: str) -> bool:
    """Sends the signed request (AWS Signature Version 4) that makes the bucket."""
    host = f"127.0.0.1:{port}"
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    scope = f"{at[:8]}/{REGION}/s3/aws4_request"
    empty = hashlib.sha256(b"").hexdigest()
    headers = {"host": host, "x-amz-content-sha256": empty, "x-amz-date": at}
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"PUT\n/{BUCKET}\n\n{lines}\n{';'.join(headers)}\n{empty}"
    text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{secret_key}".encode()
    for word in (*scope.split("/"), text):
        key = hmac.digest(key, word.encode(), "sha256")
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, "
        f"SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={key.hex()}"
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=STEP_S)
    try:
        connection.request("PUT", f"/{BUCKET}", headers=headers)
        return connection.getresponse().status == 200
    finally:
        connection.close()


def stop(folder: Path) -> None:
    """Ends the processes that `start` noted, by id, and waits until they are gone."""
    notes = sorted(folder.glob("*.started"), reverse=True)
    pids = {note: int(note.read_text()) for note in notes}
    for pid in pids.values():
        if ours(pid, folder):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 10
    while time.monotonic() < until and any(ours(pid, folder) for pid in pids.values()):
        time.sleep(0.1)
    for note, pid in pids.items():
        if ours(pid, folder):
            os.kill(pid, signal.SIGKILL)
        note.unlink()


def ours(pid: int, folder: Path) -> bool:
    """Says whether the process is alive and was started with this folder's configuration."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(folder / "ceph.conf").encode() in words


def run(folder: Path, program: str, *args: str) -> str:
    """Runs one command to its end and returns what it printed; ends with its error if it fails."""
    command = [program, "-c", str(folder / "ceph.conf"), *args]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=STEP_S)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def daemon(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """Starts a daemon in the foreground of a session of its own and notes its process id."""
    command = [words[0], "-c", str(folder / "ceph.conf"), *words[1:], "-f"]
    count = f"{len(list(folder.glob('*.started'))):02}"
    with (folder / f"{words[0]}.out").open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    (folder / f"{count}-{words[0]}.started").write_text(str(process.pid))
    return process


def wait(folder: Path, ready: Callable[[], bool], what: str) -> None:
    """Waits until `ready()`; ends with the daemons' last words when that takes too long."""
    until = time.monotonic() + STEP_S
    while not ready():
        if time.monotonic() > until:
            last = "\n".join(p.read_text("utf-8", "replace")[-500:] for p in folder.glob("*.out"))
            sys.exit(f"waited {STEP_S} s for {what}, in vain:\n{last}")
        time.sleep(0.2)


def asked(folder: Path, *words: str) -> str | None:
    """Returns the answer of the monitor; None when it refuses.

    A client of this Ceph may speak before it knows whom to (its cluster id is still zero then),
    and is refused with "wrong fsid": more often on a busy machine. So all of them are tried again.
    """
    command = ["ceph", "-c", str(folder / "ceph.conf"), *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=STEP_S)
    return None if done.returncode else done.stdout


def bring_up(folder: Path, is_up: Callable[[], bool], *words: str) -> None:
    """Starts a daemon, again when it was refused, and returns when it is up."""
    found = [daemon(folder, *words)]

    def ready() -> bool:
        if found[-1].poll() is not None and len(found) < 20:
            found.append(daemon(folder, *words))
        return is_up()

    wait(folder, ready, f"{words[0]} to be up")


def answers(port: int) -> bool:
    """Says whether somebody accepts connections on a loopback port."""
    with socket.socket() as found:
        found.settimeout(1)
        return found.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Returns a loopback port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


if __name__ == "__main__":
    main()
