"""A machine of its own in a directory: a root with BusyBox, processes that nobody else sees, the network of this one.

For root only, and where the kernel lets it make namespaces. Whatever was started in it ends with it.
"""

import os
import re
import shutil
import subprocess
import tempfile

import pytest

from wire import command

PASSWD = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"


def possible():
    return os.geteuid() == 0 and shutil.which("busybox") and subprocess.run(
        ["unshare", "-mpf", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0


class Machine:
    def __init__(self):
        self.root = tempfile.mkdtemp(prefix="midge-machine-")
        os.chmod(self.root, 0o755)
        for place in "bin dev etc/init.d proc root run tmp usr/sbin usr/bin var/lib var/log".split():
            os.makedirs(self.path(place))
        os.symlink("/run", self.path("var/run"))
        os.mknod(self.path("dev/null"), 0o20666, os.makedev(1, 3))
        os.chmod(self.path("dev/null"), 0o666)
        self.add(shutil.which("busybox"), "bin/busybox")
        for name in subprocess.run(["busybox", "--list"], capture_output=True, text=True).stdout.split():
            if name != "busybox":
                os.symlink("busybox", self.path("bin/" + name))
        self.write("etc/passwd", PASSWD)
        self.write("etc/group", GROUP)
        self.process = None

    def path(self, name):
        return os.path.join(self.root, name)

    def write(self, name, text, mode=0o644):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w") as f:
            f.write(text)
        os.chmod(self.path(name), mode)

    def read(self, name):
        with open(self.path(name)) as f:
            return f.read()

    def add(self, program, name):
        """Copies a program of this machine, and the libraries that it asks for."""
        if os.path.lexists(self.path(name)):
            os.remove(self.path(name))
        shutil.copy(program, self.path(name))
        libraries = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
        for library in re.findall(r"(/\S+) \(0x", libraries):
            if not os.path.exists(self.path(library[1:])):
                os.makedirs(os.path.dirname(self.path(library[1:])), exist_ok=True)
                shutil.copy(library, self.path(library[1:]))

    def add_midge(self, name):
        self.add(command()[-1], name)

    def boot(self, *first):
        """Starts the first process; without an argument a shell for run()."""
        mounts = f"mount -t proc proc {self.root}/proc && exec "
        words = list(first) or ["chroot", self.root, "/bin/sh"]
        self.process = subprocess.Popen(["unshare", "-mpf", "--kill-child", "sh", "-c", mounts + '"$@"', "sh", *words],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, line):
        """Runs a line of shell: (exit code, output)."""
        print(f"( {line}\n) >/tmp/out 2>&1 </dev/null; echo $?", file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the machine has gone: " + self.process.stderr.read()
        return int(answer), self.read("tmp/out")

    def end(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        shutil.rmtree(self.root)


@pytest.fixture
def machine():
    """A Machine that has not been booted yet."""
    if not possible():
        pytest.skip("needs root, busybox and namespaces")
    one = Machine()
    try:
        yield one
    finally:
        one.end()
