"""The static binaries of `make cross`: what is in them, where they run, and that they come out the same.

`make test-cross` names those to test in $CROSS.
"""

import contextlib
import os
import pwd
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading

import pytest

from wire import ROOT, V5

TARGETS = os.environ.get("CROSS", "").split()

pytestmark = pytest.mark.skipif(not TARGETS, reason="these are for `make test-cross`")

PREFIX = {"armv6": "arm-linux-gnueabi-", "aarch64": "aarch64-linux-gnu-", "x86_64": "x86_64-linux-gnu-"}

EMULATORS = {
    "armv6": ["qemu-arm -cpu arm1176", "qemu-arm -cpu cortex-a7", "qemu-arm -cpu max"],
    "aarch64": ["qemu-aarch64 -cpu cortex-a53", "qemu-aarch64 -cpu cortex-a72", "qemu-aarch64 -cpu max"],
    "x86_64": [""],
}

each_target = pytest.mark.parametrize("target", TARGETS)


def binary(target, name="midge"):
    return os.path.join(ROOT, "build", target, name)


def tool(target, name, *args):
    done = subprocess.run([PREFIX[target] + name, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


SIZE_MAX = {"armv6": 280000, "aarch64": 400000, "x86_64": 400000}


def check(target, full, stripped, size_max=400000):
    return subprocess.run([os.path.join(ROOT, "cross", "check"), target, PREFIX[target].rstrip("-"), full, stripped,
                           str(size_max)], capture_output=True, text=True)


def need(target):
    if target not in TARGETS:
        pytest.skip(f"{target} is not among the targets")


# What is in the file

@each_target
def test_static(target):
    """One file that asks for no other; for the first Pis in 280 kB."""
    assert "INTERP" not in tool(target, "readelf", "-lW", binary(target))
    assert "NEEDED" not in tool(target, "readelf", "-dW", binary(target))
    assert os.path.getsize(binary(target)) <= SIZE_MAX[target]
    done = check(target, binary(target, "midge.full"), binary(target))
    assert done.returncode == 0, done.stderr


@each_target
def test_hardened(target):
    """No memory is writable and executable, stacks are guarded; addresses differ with each start, but for ARMv6."""
    headers = tool(target, "readelf", "-hlW", binary(target))
    assert re.search("Type: +" + ("EXEC" if target == "armv6" else "DYN"), headers)
    assert not re.search(r"LOAD .* RWE", headers)
    assert re.search(r"GNU_STACK .* RW ", headers)
    assert "__stack_chk_fail" in tool(target, "nm", binary(target, "midge.full"))


@each_target
def test_no_places_inside(target):
    """No path of the machine that built it, no compiler's name."""
    with open(binary(target), "rb") as f:
        content = f.read()
    for word in (ROOT, "/home/", "GCC:", "build/src"):
        assert word.encode() not in content, word


@each_target
def test_time_is_64_bit(target, tmp_path):
    """2038 is not the end: the compiler of the build is asked, with the headers of the build."""
    source = tmp_path / "time.c"
    source.write_text('#include <time.h>\n_Static_assert(sizeof(time_t) == 8, "time_t");\n')
    tool(target, "gcc", "-nostdinc", "-isystem", binary(target, "sys/include"), "-fsyntax-only", str(source))


# What the check of the build refuses

def compiled(target, tmp_path, code, *flags):
    source, out = tmp_path / "x.c", tmp_path / "x"
    source.write_text(code)
    tool(target, "gcc", "-nostdlib", "-static", "-Os", *flags, str(source), "-o", str(out))
    return str(out)


EMPTY = "void _start(void) { }"


@each_target
def test_check_size(target):
    done = check(target, binary(target, "midge.full"), binary(target), 100000)
    assert done.returncode == 1
    assert re.search(f"[0-9]+ bytes, 100000 are allowed; look at make size TARGET={target}", done.stderr)


@pytest.mark.parametrize("flags, code, complaint", [
    (["-march=armv7-a", "-marm"], "unsigned _start(unsigned a) { return a >> 3 & 0x3f; }", "that the first Pis do not have"),
    (["-march=armv7-a", "-mthumb"], "unsigned _start(unsigned a) { return a >> 3 & 0x3f; }",
     "that the first Pis do not have"),
    (["-march=armv7-a", "-mthumb"], "unsigned _start(unsigned *a) { return a[1000]; }",
     "that the first Pis do not have"),
    (["-march=armv6", "-marm", "-Wl,-z,max-page-size=0x1000"], EMPTY, "not aligned to 64 KiB"),
    (["-march=armv6", "-marm", "-Wl,-z,execstack"], EMPTY, "its stack is executable"),
], ids=["armv7", "thumb2", "long-thumb", "alignment", "stack"])
def test_check_armv6(tmp_path, flags, code, complaint):
    need("armv6")
    wrong = compiled("armv6", tmp_path, code, "-Wl,-z,max-page-size=0x10000", *flags)
    done = check("armv6", wrong, wrong)
    assert done.returncode == 1
    assert complaint in done.stderr


def test_check_loader():
    need("x86_64")
    done = check("x86_64", "/bin/true", "/bin/true")
    assert done.returncode == 1
    assert "it asks for a dynamic loader" in done.stderr
    assert "it asks for a shared library" in done.stderr


def test_sources_checked(tmp_path):
    """An archive that is not the right one is not unpacked."""
    (tmp_path / "bearssl_0.6+dfsg.1.orig.tar.xz").write_bytes(b"something else")
    done = subprocess.run([os.path.join(ROOT, "cross", "sources"), tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "is not what it should be; remove it and try again" in done.stderr
    assert os.listdir(tmp_path) == ["bearssl_0.6+dfsg.1.orig.tar.xz"]


# Where it runs

@pytest.mark.parametrize("target, emulator", [(t, e) for t in TARGETS for e in EMULATORS[t]])
def test_exchange(monkeypatch, new_broker, connect, target, emulator):
    """It starts on the processor, and two clients exchange messages of all levels."""
    monkeypatch.setenv("MIDGE", f"{emulator} {binary(target)}")
    broker = new_broker()
    sub, pub = connect(broker=broker, version=V5), connect(broker=broker)
    sub.subscribe("t/#", qos=2)
    for qos in (0, 1, 2):
        pub.publish("t/x", f"level {qos}", qos=qos)
        sub.expect_publish("t/x", f"level {qos}", qos=qos)
    big = os.urandom(100000)
    pub.publish("t/big", big, qos=1)
    sub.expect_publish("t/big", big)


@each_target
def test_name_lookup(monkeypatch, new_broker, target):
    """Names of /etc/hosts are found, others are not, and that is said."""
    monkeypatch.setenv("MIDGE", f"{EMULATORS[target][0]} {binary(target)}")
    new_broker(config="listener {port} localhost\nallow_anonymous true\n")
    code, _, log = new_broker(config="listener {port} nobody.invalid\n", start=False).run()
    assert code == 1
    assert "nobody.invalid" in log


@contextlib.contextmanager
def name_server(address, ip):
    """A name server that knows one address for all names and no IPv6."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.bind((address, 53))
        except OSError as e:
            pytest.skip(f"port 53 of {address}: {e}")

        def serve():
            while True:
                query, client = s.recvfrom(512)
                if len(query) < 12:
                    return
                kind, = struct.unpack(">H", query[-4:-2])
                answer = b"" if kind != 1 else b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(ip)
                count = struct.pack(">H", 1 if answer else 0)
                s.sendto(query[:2] + b"\x81\x80\0\1" + count + b"\0\0\0\0" + query[12:] + answer, client)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"", (address, 53))
            thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot is for root")
def test_alone_in_its_root(monkeypatch, new_broker, connect, tmp_path):
    """Without any other file, not even /dev or /etc, it serves; with resolv.conf alone it asks the name server."""
    need("x86_64")
    root = tempfile.mkdtemp(dir=tmp_path)
    os.chmod(root, 0o755)
    shutil.copy(binary("x86_64"), root)
    os.makedirs(os.path.join(root, "etc"))
    monkeypatch.setenv("MIDGE", f"chroot --userspec=65534:65534 {root} /midge")
    broker = new_broker(config=None, args=["-c", "/etc/midge.conf"], start=False)

    def start(host):
        with open(os.path.join(root, "etc", "midge.conf"), "w") as f:
            f.write(broker._fill(f"listener {{port}} {host}\nallow_anonymous true\n"))
        broker.start()
        sub = connect(broker=broker)
        sub.subscribe("t")
        sub.publish("t", "alone")
        sub.expect_publish("t", "alone")
        broker.stop()

    start("127.0.0.1")
    with open(os.path.join(root, "etc", "resolv.conf"), "w") as f:
        f.write("nameserver 127.0.0.77\n")
    with name_server("127.0.0.77", "127.0.0.1"):
        start("broker.example")


def test_old_kernel(monkeypatch, new_broker, connect):
    """On a kernel without any call younger than Linux 3.2 it serves."""
    need("x86_64")
    monkeypatch.setenv("MIDGE", f"/usr/bin/python3 test/old_kernel.py {binary('x86_64')}")
    broker = new_broker()
    sub, pub = connect(broker=broker), connect(broker=broker)
    sub.subscribe("t", qos=1)
    pub.publish("t", "old", qos=1)
    sub.expect_publish("t", "old")


# That it comes out the same

@pytest.mark.limit(400)
@each_target
def test_reproducible(target):
    """Another directory, another user, another umask, another -j: the same bytes, stripped and not."""
    elsewhere = tempfile.mkdtemp(prefix="midge-elsewhere-")
    try:
        files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True,
                               capture_output=True, text=True).stdout.split()
        for name in files:
            os.makedirs(os.path.dirname(os.path.join(elsewhere, name)), exist_ok=True)
            shutil.copy(os.path.join(ROOT, name), os.path.join(elsewhere, name))
        who = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for place, _, _ in os.walk(elsewhere):
                os.chown(place, nobody.pw_uid, nobody.pw_gid)
        sources = os.path.join(ROOT, "build", "src")
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        env["SOURCE_DATE_EPOCH"] = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True,
                                                  capture_output=True, text=True).stdout.strip()
        done = subprocess.run(["make", "-j3", "cross", f"TARGET={target}", f"BEARSSL={sources}/bearssl",
                               f"MUSL={sources}/musl"], cwd=elsewhere, umask=0o077, env=env, capture_output=True,
                              text=True, **who)
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("midge", "midge.full"):
            with open(binary(target, name), "rb") as a, open(f"{elsewhere}/build/{target}/{name}", "rb") as b:
                assert a.read() == b.read(), name
    finally:
        shutil.rmtree(elsewhere)
