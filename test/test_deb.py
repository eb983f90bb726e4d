"""The packages of `make deb`; `make test-deb` runs this, as root, with $DEB set."""

import glob
import os
import re
import shutil
import subprocess
import tempfile

import pytest

from wire import ROOT

pytestmark = pytest.mark.skipif(not os.environ.get("DEB"), reason="these are for `make test-deb`")

DEBS = sorted(glob.glob(os.path.join(ROOT, "build", "midge-mqtt_*.deb")))

MACHINES = {"armel": "ARM", "armhf": "ARM", "arm64": "AArch64", "amd64": "X86-64"}


def run(*words, code=0):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
                          env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"})
    assert done.returncode == code, done.stdout
    return done.stdout


def test_all_ports():
    assert {re.search(r"_(\w+)\.deb", d).group(1) for d in DEBS} == set(MACHINES)


@pytest.mark.parametrize("deb", DEBS, ids=[os.path.basename(d) for d in DEBS] or None)
def test_lintian(deb):
    """Neither errors nor warnings."""
    assert "E:" not in run("lintian", "--fail-on", "error,warning", deb)


@pytest.mark.parametrize("deb", DEBS, ids=[os.path.basename(d) for d in DEBS] or None)
def test_program_fits(deb, tmp_path):
    """The program in it is for the processors of its port."""
    run("dpkg-deb", "-x", deb, tmp_path)
    arch = run("dpkg-deb", "-f", deb, "Architecture").strip()
    assert MACHINES[arch] in re.search("Machine:(.*)", run("readelf", "-h", tmp_path / "usr/sbin/midge")).group(1)


@pytest.mark.parametrize("deb", DEBS, ids=[os.path.basename(d) for d in DEBS] or None)
def test_reproducible(deb):
    """Made again it is the same."""
    with open(deb, "rb") as f:
        before = f.read()
    run("make", "-s", "-C", ROOT, "deb")
    with open(deb, "rb") as f:
        assert f.read() == before


@pytest.fixture
def debian():
    """A fresh Debian; run commands in it with debian(*words)."""
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        pytest.skip("debootstrap is for root")
    mirror = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()[0]
    root = tempfile.mkdtemp(prefix="midge-debian-")
    try:
        run("debootstrap", "--variant=minbase", "bookworm", root, mirror)

        def inside(*words, code=0):
            return run("unshare", "-mpf", "sh", "-c", f'mount -t proc proc {root}/proc && exec chroot {root} "$@"', "sh",
                       *words, code=code)
        inside.path = lambda name: os.path.join(root, name)
        yield inside
    finally:
        shutil.rmtree(root)


def files(debian):
    """All files but those of the package tools, of logs and of the list of users."""
    found = set()
    for place, _, names in os.walk(debian.path("")):
        found.update(os.path.relpath(os.path.join(place, n), debian.path("")) for n in names)
    return {f for f in found if not re.match(r"(var/(lib/(dpkg|apt)|cache|log|lib/systemd)|proc|run|etc/(passwd|group|g?shadow|"
                                             r"subuid|subgid)-?$|tmp/)", f)}


@pytest.mark.limit(400)
def test_install_and_remove(debian):
    """It installs, runs, is upgraded without touching the configuration, and goes without a trace but its user."""
    deb = next(d for d in DEBS if d.endswith("_amd64.deb"))
    shutil.copy(deb, debian.path("tmp/midge.deb"))
    debian("apt-get", "install", "-y", "-qq", "adduser")
    before = files(debian)

    debian("apt-get", "install", "-y", "-qq", "/tmp/midge.deb")
    assert "midge version " in debian("midge", "--version")
    assert re.search(r"^midge:x:\d+:\d+::/var/lib/midge:/usr/sbin/nologin$", debian("getent", "passwd", "midge"), re.M)
    wanted = debian.path("etc/systemd/system/multi-user.target.wants/midge.service")
    assert os.readlink(wanted) in ("/lib/systemd/system/midge.service", "/usr/lib/systemd/system/midge.service")

    config = debian.path("etc/midge/midge.conf")
    with open(config, "a") as f:
        f.write("# mine\n")
    debian("apt-get", "install", "-y", "-qq", "--reinstall", "/tmp/midge.deb")
    with open(config) as f:
        assert f.read().endswith("# mine\n")

    debian("apt-get", "remove", "-y", "-qq", "midge-mqtt")
    # as with all services of Debian, that it was enabled is remembered too
    assert files(debian) - before == {"etc/midge/midge.conf", "etc/systemd/system/multi-user.target.wants/midge.service"}
    os.mkdir(debian.path("var/lib/midge"))
    debian("apt-get", "purge", "-y", "-qq", "midge-mqtt")
    assert files(debian) == before
    assert not os.path.exists(debian.path("etc/midge")) and not os.path.exists(debian.path("var/lib/midge"))
