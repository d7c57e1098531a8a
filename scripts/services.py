"""Real servers for tests that copy from them: PostgreSQL, and NATS with JetStream.

    python scripts/services.py install FOLDER

Gets Debian's packages if they miss and this is root; else does nothing. PostgreSQL is installed
without a cluster of its own, so nothing is started. nats-server is one program, and its package
would start it: it is unpacked below FOLDER, and not installed. What can't be had is said; the
tests that need it are skipped, or fail when LOCKGATE_REQUIRE=all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SET = "create_main_cluster"
CLUSTERS = Path("/etc/postgresql-common/createcluster.conf")
APT = ("apt-get", "-qq", "-y", "-o", "Dpkg::Options::=--force-confold")
QUIET = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}


def main() -> None:
    """Does what the command line says."""
    if len(sys.argv) != 3 or sys.argv[1] != "install":
        sys.exit(__doc__)
    folder = Path(sys.argv[2]).resolve()
    wanted = []
    if postgres_programs() is None:
        wanted.append(("postgresql", install_postgres))
    if nats_program(folder) is None:
        wanted.append(("nats-server", lambda: unpack_nats(folder)))
    if not wanted or os.geteuid() or not shutil.which("apt-get"):
        return
    print(f"getting {' and '.join(name for name, _ in wanted)} for tests", file=sys.stderr)
    for name, get in wanted:
        try:
            get()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name} can't be had: {error}", file=sys.stderr)


def postgres_programs() -> Path | None:
    """Returns the folder of the newest PostgreSQL server on this machine."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    program = shutil.which("initdb")
    return Path(program).resolve().parent if program else None


def nats_program(folder: Path) -> Path | None:
    """Returns the NATS server that is installed, or that was unpacked below `folder`."""
    unpacked = folder / "usr" / "sbin" / "nats-server"
    if unpacked.is_file():
        return unpacked
    program = shutil.which("nats-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Path(program) if program else None


def apt(*words: str, folder: Path | None = None) -> None:
    """Runs apt-get; raises CalledProcessError."""
    command = [*APT, *words]
    subprocess.run(command, check=True, env=QUIET, cwd=folder, stdout=subprocess.DEVNULL)


def install_postgres() -> None:
    """Installs PostgreSQL and keeps its package from making a cluster and starting it."""
    apt("update")
    apt("install", "--no-install-recommends", "postgresql-common")
    before = CLUSTERS.read_text() if CLUSTERS.is_file() else ""
    others = [line for line in before.splitlines() if not line.lstrip("# ").startswith(SET)]
    CLUSTERS.write_text("\n".join([*others, f"{SET} = false"]) + "\n")
    try:
        apt("install", "--no-install-recommends", "postgresql")
    finally:
        CLUSTERS.write_text(before)


def unpack_nats(folder: Path) -> None:
    """Unpacks Debian's nats-server below `folder`."""
    apt("update")
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch)
        at.chmod(0o777)  # apt fetches as a user of its own
        apt("download", "nats-server", folder=at)
        (package,) = at.glob("nats-server_*.deb")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)


if __name__ == "__main__":
    main()
