"""A disk that is slow or bad, and a clock that is wrong, for a broker that knows nothing of it.

    disk = Disk()
    broker = wire.Broker(..., env=disk.env)
    disk.hold()             every sync waits until disk.go()
    disk.fail("pwritev", errno.EIO)

The shim disk.c is built when it is first asked for. It works with programs that load libc as a
shared library, not with the static ones of `make cross`: skip_if_static().
"""

import os
import shutil
import subprocess
import tempfile
import unittest

import wire

HERE = os.path.dirname(os.path.abspath(__file__))


def shim():
    """The path of the library; one is made per build folder."""
    folder = os.path.join(wire.ROOT, os.environ.get("BUILD", "build"))
    path, source = os.path.join(folder, "disk.so"), os.path.join(HERE, "disk.c")
    if not os.path.exists(path) or os.path.getmtime(path) < os.path.getmtime(source):
        os.makedirs(folder, exist_ok=True)
        fresh = f"{path}.{os.getpid()}"     # other processes of pytest make it too
        subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", "-o", fresh, source, "-ldl"],
                       check=True)
        os.rename(fresh, path)
    return path


def works():
    """Whether the program under test is one of this machine that loads libc."""
    words = wire.command()
    with open(shutil.which(words[0]), "rb") as f:
        return len(words) == 1 and b"/ld-" in f.read(4096)


def skip_if_static():
    if not works():
        raise unittest.SkipTest("the shim of disk.py cannot be in this program")


def environment(**tricks):
    """For a process that the shim is to be in. A sanitizer would insist on being the first."""
    options = os.environ.get("ASAN_OPTIONS", "")
    return {"LD_PRELOAD": shim(), "ASAN_OPTIONS": options + ":" * bool(options) + "verify_asan_link_order=0",
            **tricks}


def clock_off(seconds):
    """The environment in which time() is off by so much."""
    skip_if_static()
    return environment(DISK_CLOCK=str(seconds))


class Disk:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="midge-disk-")
        os.chmod(self.dir, 0o755)
        self._write("syncs", "")
        os.chmod(self._path("syncs"), 0o666)
        self.env = environment(DISK_TRICKS=self.dir) if works() else {}

    def cleanup(self):
        shutil.rmtree(self.dir, ignore_errors=True)

    def slow(self, ms):
        self._write("slow", str(ms))

    def hold(self):
        """Each sync that begins from now on waits."""
        self._write("hold", "")

    def go(self):
        self._remove("hold")

    def fail(self, call, error):
        self._write(call, str(error))

    def well(self):
        """No tricks any more."""
        for name in os.listdir(self.dir):
            if name != "syncs":
                self._remove(name)

    def syncs(self):
        """How many syncs have begun so far."""
        return os.path.getsize(self._path("syncs"))

    def _path(self, name):
        return os.path.join(self.dir, name)

    def _write(self, name, text):
        with open(self._path(name + "~"), "w") as f:
            f.write(text)
        os.rename(self._path(name + "~"), self._path(name))

    def _remove(self, name):
        if os.path.exists(self._path(name)):
            os.unlink(self._path(name))
