"""The store's life through the command line: cost, garbage, backup, a lost disk, a far site."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lockgate
from lockgate.core.errors import NotFoundError

from .calls import MODELS
from .conftest import CHAT, Site, wait

NAME = "acme/weights"

pytestmark = pytest.mark.e2e


def weights(folder: Path, seed: int) -> Path:
    """Writes a small model; every seed is near the first."""
    base = np.random.default_rng(0).standard_normal((256, 512), np.float32) / 32
    noise = np.random.default_rng(seed).standard_normal(base.shape, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    moved = base + noise * np.float32(1e-4 if seed else 0)
    save_file({"w": moved.astype(np.float16), "b": moved[0]}, folder / "model.safetensors")
    (folder / "config.json").write_text(f'{{"seed": {seed}}}')
    return folder


def test_a_fine_tune_costs_a_fraction_and_comes_back_bit_for_bit(site: Site) -> None:
    for seed in range(2):
        site.run("publish", str(weights(site.folder / f"m{seed}", seed)), NAME)
    found = site.json("du")
    first, second = found["versions"]
    assert second["alone"] < first["size"] / 2
    site.run("restore", NAME, "v2", str(site.folder / "out"))
    for name in ("model.safetensors", "config.json"):
        made, given = (site.folder / at / name for at in ("out", "m1"))
        assert made.read_bytes() == given.read_bytes()
    with lockgate.open(f"{NAME}:v2", home=site.home) as version:
        given = load_file(site.folder / "m1/model.safetensors")
        assert (version["w"].numpy() == given["w"]).all()
        assert (version["w"][3:7, ::2] == given["w"][3:7, ::2]).all()
        assert (version["w"][-1] == given["w"][-1]).all()
        assert version["b"].dtype == "F32"
        assert version.read("config.json") == b'{"seed": 1}'
        with pytest.raises(NotFoundError, match="no tensor"):
            version["nothing"]


def test_a_lost_disk_comes_back_from_the_backup(site: Site) -> None:
    for seed in range(2):
        site.run("publish", str(weights(site.folder / f"m{seed}", seed)), NAME)
    site.run("alias", NAME, "champion", "v2")
    site.run("backup", str(site.folder / "bk"))
    assert "0 B travelled" in site.run("backup", str(site.folder / "bk"))
    site.stop()
    shutil.rmtree(site.home)
    site.run("recover", str(site.folder / "bk"))
    site.run("recover", str(site.folder / "bk"), code=4)
    site.start()
    site.run("verify")
    site.run("audit", "--verify")
    assert site.json("show", NAME, "champion")["number"] == 2
    site.run("restore", NAME, "v2", str(site.folder / "out"))
    assert (site.folder / "out/model.safetensors").read_bytes() == (
        site.folder / "m1/model.safetensors"
    ).read_bytes()


def test_damage_is_named_by_version_and_repaired(site: Site) -> None:
    site.run("publish", str(weights(site.folder / "m0", 0)), NAME)
    site.run("backup", str(site.folder / "bk"))
    pack = max((site.home / "store/packs").glob("*/*"), key=lambda path: path.stat().st_size)
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 2] ^= 1
    pack.write_bytes(raw)
    site.run("verify", code=6)
    assert "acme/weights v1  model.safetensors" in site.said
    site.run("repair", str(site.folder / "bk"))
    site.run("verify")
    site.run("repair", str(site.folder / "nowhere"), code=3)


def test_a_bundle_crosses_to_a_site_without_network(site: Site) -> None:
    for seed in range(2):
        site.run("publish", str(weights(site.folder / f"m{seed}", seed)), NAME)
    site.run("export", NAME, "v2", str(site.folder / "v2.bundle"))
    site.run("export", NAME, "v2", str(site.folder / "v2.bundle"), code=4)
    site.run("import", str(site.folder / "v2.bundle"), "--as", "far/away")
    assert site.json("show", "far/away", "v1")["digest"] == site.json("show", NAME, "v2")["digest"]
    (site.folder / "bad").write_bytes(b"no tar")
    site.run("import", str(site.folder / "bad"), code=6)


def test_the_sums_are_those_that_sha256sum_checks(site: Site) -> None:
    folder = weights(site.folder / "m0", 0)
    site.run("publish", str(folder), NAME)
    for _ in range(2):  # computed, then known
        said = site.run("sums", NAME, "v1")
        done = subprocess.run(["sha256sum", "-c"], input=said, text=True, cwd=folder)
        assert done.returncode == 0


def test_garbage_is_collected_beside_what_serves(site: Site) -> None:
    site.run("publish", str(weights(site.folder / "m0", 0)), NAME)
    site.run("gc")
    site.run("gc", "--now")
    site.run("optimize")
    site.run("gc", "--now", "--grace", "5", code=2)
    site.run("verify", "--sample", "0.5")
    assert site.json("du")["loose"] < 10_000


def test_going_back_to_a_version_moves_no_byte(site: Site) -> None:
    site.serve_first(CHAT, "chat")
    site.run("publish", str(MODELS / "chat-v2"), CHAT)
    name = site.open(CHAT, 2)
    site.run("promote", name, "--reason", "test")
    assert site.ended(name)["phase"] == "promoted"
    hot = site.home / "versions"
    before = {path: path.stat().st_ino for path in hot.rglob("*") if path.is_file()}
    assert len(list(hot.iterdir())) == 2
    site.run("rollback", CHAT, "--reason", "test")
    wait(lambda: site.json("status")["routes"][0]["serving"]["number"] == 1)
    after = {path: path.stat().st_ino for path in hot.rglob("*") if path.is_file()}
    assert before == after  # the files of both versions are the very same
