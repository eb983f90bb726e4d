"""make deploy: over a real ssh connection to machines with each of the five init systems."""

import os
import re
import shutil
import stat
import subprocess

import pytest

from machine import machine  # noqa: F401
from wire import ROOT, Client, command, free_port

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"

pytestmark = pytest.mark.skipif(not os.path.exists(SSHD) or not shutil.which("ssh"), reason="no ssh here")

SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {dir}/host
AuthorizedKeysFile {dir}/login.pub
ChrootDirectory /mnt
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
"""

# The tools of an init system: each tells how it was called.
STUB = "#!/bin/sh\necho ${0##*/} \"$@\" >>/calls\n"


@pytest.fixture
def sshd(machine, tmp_path):  # noqa: F811
    """sshd(): boots the machine with a server that lets root in with a key; then deploy() works."""
    shell = machine.path("bin/" + os.path.basename(subprocess.run(
        ["getent", "passwd", "root"], capture_output=True, text=True).stdout.strip().rpartition("/")[2]))
    if not os.path.lexists(shell):
        with open(shell, "w") as f:
            f.write('#!/bin/sh\nexec /bin/sh "$@"\n')
        os.chmod(shell, 0o755)
    for key in ("host", "login"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    port = free_port()
    config = tmp_path / "sshd_config"
    config.write_text(SSHD_CONFIG.format(port=port, dir=tmp_path))
    # what make deploy would send, with the program under test in the place of the cross-built ones
    shutil.copytree(os.path.join(ROOT, "cross"), tmp_path / "cross")
    os.makedirs(tmp_path / "build" / "x86_64")
    shutil.copy(command()[-1], tmp_path / "build" / "x86_64" / "midge")
    os.makedirs(tmp_path / "build" / "armv6")
    (tmp_path / "build" / "armv6" / "midge").write_bytes(b"\x7fELF for another processor")
    machine.add_midge("tmp/midge")          # for the libraries
    os.remove(machine.path("tmp/midge"))

    def boot():
        # sshd wants a root below folders that only root can write to, and a place under /run
        machine.boot("sh", "-c", f"mount --rbind {machine.root} /mnt && mount -t tmpfs none /run && "
                     'mkdir /run/sshd && exec "$@"', "sh", SSHD, "-D", "-e", "-f", str(config))
        line = machine.process.stderr.readline()
        assert "Server listening" in line, line

    def deploy(*args, code=0):
        ssh = f"ssh -F none -p {port} -i {tmp_path}/login -o StrictHostKeyChecking=no -o BatchMode=yes " \
              f"-o UserKnownHostsFile={tmp_path}/known"
        done = subprocess.run([tmp_path / "cross" / "deploy", "root@127.0.0.1", *args], env={**os.environ, "SSH": ssh},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    machine.deploy = deploy
    return boot


def configure(machine, port):  # noqa: F811
    machine.write("etc/midge/midge.conf", f"listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest none\n")


def serves(port):
    client = Client(("127.0.0.1", port))
    client.connect("probe")
    client.close()


def called(machine):  # noqa: F811
    return machine.read("calls").splitlines()


def test_busybox(machine, sshd):  # noqa: F811
    """Buildroot: the service runs afterwards; a second time the new program runs, the configuration stays."""
    machine.write("etc/init.d/rcS", "#!/bin/sh\n", 0o755)
    port = free_port()
    configure(machine, port)
    before = machine.read("etc/midge/midge.conf")
    sshd()
    output = machine.deploy()
    assert "midge: x86_64 binary in /usr/local/sbin/midge" in output
    assert "midge: made the user midge" in output
    assert "midge: /etc/midge/midge.conf is there and stays as it is" in output
    assert "midge: runs, and will after each boot" in output
    assert "mosquitto_sub -h 127.0.0.1 -t '#' -v" in output
    serves(port)
    first, file = machine.read("run/midge.pid"), os.stat(machine.path("usr/local/sbin/midge")).st_ino
    output = machine.deploy()
    assert "made the user" not in output
    assert machine.read("etc/midge/midge.conf") == before
    assert machine.read("run/midge.pid") != first
    assert os.stat(machine.path("usr/local/sbin/midge")).st_ino != file
    serves(port)
    assert os.access(machine.path("etc/init.d/S50midge"), os.X_OK)
    assert os.listdir(machine.path("tmp")) == []


def test_sysv(machine, sshd):  # noqa: F811
    machine.write("bin/update-rc.d", STUB, 0o755)
    port = free_port()
    configure(machine, port)
    sshd()
    machine.deploy()
    assert called(machine) == ["update-rc.d midge defaults"]
    assert os.access(machine.path("etc/init.d/midge"), os.X_OK)
    serves(port)


def test_systemd(machine, sshd):  # noqa: F811
    """Fresh: configuration, user with useradd, unit with the right path, started and enabled."""
    machine.write("bin/systemctl", STUB, 0o755)
    machine.write("bin/useradd", STUB + "echo midge:x:990:990::/:/bin/false >>/etc/passwd\n", 0o755)
    os.makedirs(machine.path("run/systemd/system"))
    os.makedirs(machine.path("etc/systemd/system"))
    sshd()
    machine.deploy()
    assert called(machine) == [
        "useradd --system --user-group --no-create-home --home-dir /var/lib/midge --shell /usr/sbin/nologin midge",
        "systemctl daemon-reload", "systemctl enable midge", "systemctl restart midge"]
    unit = machine.read("etc/systemd/system/midge.service")
    assert "\nExecStart=/usr/local/sbin/midge -c /etc/midge/midge.conf\n" in unit
    with open(os.path.join(ROOT, "cross", "midge.conf")) as f:
        assert machine.read("etc/midge/midge.conf") == f.read()


def test_openrc(machine, sshd):  # noqa: F811
    """Alpine: its adduser is BusyBox's."""
    for name in ("rc-update", "rc-service", "addgroup"):
        machine.write("bin/" + name, STUB, 0o755)
    machine.write("bin/adduser", STUB + "echo midge:x:990:990::/:/bin/false >>/etc/passwd\n", 0o755)
    machine.write("sbin/openrc-run", STUB, 0o755)
    sshd()
    machine.deploy()
    assert called(machine) == [
        "addgroup -S midge", "adduser -S -D -H -h /var/lib/midge -s /bin/false -G midge midge",
        "rc-update add midge default", "rc-service midge restart"]
    assert "\ncommand=/usr/local/sbin/midge\n" in machine.read("etc/init.d/midge")


def test_procd(machine, sshd):  # noqa: F811
    """OpenWrt: no tool to make users, so a line is added, once."""
    machine.write("etc/rc.common", "#!/bin/sh\necho \"$@\" >>/calls\n", 0o755)
    machine.write("sbin/procd", STUB, 0o755)
    machine.write("etc/shadow", "root:*:0:0:99999:7:::\n", 0o600)
    machine.write("etc/passwd", machine.read("etc/passwd") + "other:x:8883:8883::/:/bin/false\n")
    sshd()
    for _ in range(2):
        machine.deploy()
    assert called(machine) == 2 * ["/etc/init.d/midge enable", "/etc/init.d/midge restart"]
    assert machine.read("etc/passwd").splitlines()[-1] == "midge:x:8884:8884:midge:/var/lib/midge:/bin/false"
    assert machine.read("etc/passwd").count("midge:x") == machine.read("etc/group").count("midge:x") == 1
    assert machine.read("etc/shadow").splitlines()[-1].startswith("midge:*:")
    assert '\nDAEMON=/usr/local/sbin/midge\n' in machine.read("etc/init.d/midge")


def test_certificates(machine, sshd, tmp_path):  # noqa: F811
    """What make-certs made comes along, the key for midge alone; ca.key does not; a second time all stay."""
    machine.write("etc/init.d/rcS", "", 0o755)
    configure(machine, free_port())
    certs = tmp_path / "certs"
    for _ in range(2):
        subprocess.run([tmp_path / "cross" / "make-certs", "--dir", certs, "pi.local"], check=True, capture_output=True)
        if not machine.process:
            sshd()
            machine.deploy(certs)
            first = {f: machine.read("etc/midge/" + f) for f in ("ca.crt", "broker.crt", "broker.key")}
            assert first["broker.key"] == (certs / "broker.key").read_text()
            shutil.rmtree(certs)
    output = machine.deploy(certs)
    assert "/etc/midge/broker.key is there and stays as it is" in output
    assert {f: machine.read("etc/midge/" + f) for f in first} == first
    assert sorted(os.listdir(machine.path("etc/midge"))) == ["broker.crt", "broker.key", "ca.crt", "midge.conf"]
    key = os.stat(machine.path("etc/midge/broker.key"))
    uid = int(re.search(r"^midge:x:(\d+)", machine.read("etc/passwd"), re.M).group(1))
    assert (key.st_uid, stat.S_IMODE(key.st_mode)) == (uid, 0o600)


def test_does_not_start(machine, sshd):  # noqa: F811
    """What keeps the service from starting is told, with the next step."""
    machine.write("etc/init.d/rcS", "", 0o755)
    machine.write("etc/midge/midge.conf", "no_such_option 1\n")
    sshd()
    output = machine.deploy(code=1)
    assert "it is installed but does not start; /usr/local/sbin/midge check -c /etc/midge/midge.conf" in output


def test_unknown_init(machine, sshd):  # noqa: F811
    sshd()
    assert "no init system that I know; start it yourself: /usr/local/sbin/midge -c" in machine.deploy(code=1)


def test_other_processor(machine, sshd, tmp_path):  # noqa: F811
    """Without a binary that runs over there nothing is touched."""
    os.remove(tmp_path / "build" / "x86_64" / "midge")
    sshd()
    assert "none of the binaries runs on this machine" in machine.deploy(code=1)
    assert not os.path.exists(machine.path("usr/local")) and not os.path.exists(machine.path("etc/midge"))


def test_without_rights(machine, tmp_path):  # noqa: F811
    """An ordinary user without sudo is told so."""
    shutil.copy(os.path.join(ROOT, "cross", "setup"), machine.path("setup"))
    done = subprocess.run(["chroot", "--userspec=65534:65534", machine.root, "/setup"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "midge: this needs root; log in as root\n")
    machine.write("bin/sudo", "#!/bin/sh\nexit 1\n", 0o755)
    done = subprocess.run(["chroot", "--userspec=65534:65534", machine.root, "/setup"], capture_output=True, text=True)
    assert "sudo wants a password here" in done.stderr


def test_no_address():
    done = subprocess.run([os.path.join(ROOT, "cross", "deploy"), ""], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "Say where: make deploy PI=user@host\n")
