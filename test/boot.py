"""Emulated Pis that boot a kernel of Debian with BusyBox, midge and its init script, and nothing else.

The kernels are those that cross/kernels unpacked into build/kernels. A machine has one disk, on which only
/var/lib/midge lies; everything else is in memory, made anew for each boot. Network is emulated: two ports of
127.0.0.1 lead to 1883 and 8883 of the machine, and nothing leads out.
"""

import collections
import glob
import gzip
import os
import re
import select
import stat
import struct
import subprocess
import time

from wire import ROOT, free_port

KERNELS = os.path.join(ROOT, "build", "kernels")

Model = collections.namedtuple("Model", "arch qemu kernel_line disk modules")

MODELS = {
    # Its power driver, not emulated in full, would make this kernel stumble.
    "raspi0": Model("armel", ["qemu-system-arm", "-M", "raspi0", "-dtb", "{dtb}", "-device", "usb-net,netdev=net",
                              "-drive", "if=sd,format=raw,file={disk}"],
                    "console=ttyAMA0,115200 initcall_blacklist=bcm2835_pm_driver_init",
                    "mmcblk0", ["crc32c_generic", "ext4", "cdc_ether"]),
    "virt": Model("arm64", ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-m", "256",
                            "-device", "virtio-net-device,netdev=net",
                            "-device", "virtio-blk-device,drive=disk",
                            "-drive", "if=none,id=disk,format=raw,file={disk}"],
                  "console=ttyAMA0", "vda", ["virtio_mmio", "crc32c_generic", "ext4", "virtio_blk", "virtio_net"]),
}

RC_S = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
for m in $(cat /modules/order); do insmod /modules/$m.ko; done
while [ ! -e /dev/{disk} ]; do sleep 1; done
mount -t ext4 -o noatime /dev/{disk} /var/lib/midge
ifconfig lo 127.0.0.1 up
while ! ls -d /sys/class/net/eth0 /sys/class/net/usb0 2>/dev/null | grep -q .; do sleep 1; done
for n in eth0 usb0; do [ ! -e /sys/class/net/$n ] || ifconfig $n 10.0.2.15 netmask 255.255.255.0 up; done
/etc/init.d/S50midge start
"""

INITTAB = """::sysinit:/etc/init.d/rcS
ttyAMA0::respawn:/bin/sh /etc/console
"""

# A shell that edits lines asks the terminal where its cursor is, and takes what is typed for the answer.
CONSOLE = """while read -r line; do eval "$line"; done
"""


def read(path):
    with open(path, "rb") as f:
        return f.read()


def module_order(tree, wanted):
    """The files of the modules and of all that they depend on, in the order to load them."""
    files = {}
    for place, _, names in os.walk(os.path.join(tree, "lib", "modules")):
        files.update((n[:-3].replace("-", "_"), os.path.join(place, n)) for n in names if n.endswith(".ko"))
    order = []

    def add(name):
        if name not in files:           # part of the kernel itself
            return
        info = re.search(rb"\0depends=([^\0]*)\0", read(files[name]))
        for needed in info.group(1).decode().split(",") if info and info.group(1) else []:
            add(needed.replace("-", "_"))
        if name not in order:
            order.append(name)
    for name in wanted:
        add(name)
    return [(name, files[name]) for name in order]


class Archive:
    """An initramfs: a cpio archive in the format that the kernel reads."""

    def __init__(self):
        self.data = bytearray()
        self.count = 0
        self.folders = set()

    def _entry(self, name, mode, content=b"", major=0, minor=0):
        self.count += 1
        fields = (self.count, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name) + 1, 0)
        self.data += b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
        self.data += bytes(-len(self.data) % 4) + content
        self.data += bytes(-len(self.data) % 4)

    def folder(self, name):
        if name and name not in self.folders:
            self.folder(os.path.dirname(name))
            self.folders.add(name)
            self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name, content, mode=0o644):
        self.folder(os.path.dirname(name))
        self._entry(name, stat.S_IFREG | mode, content if isinstance(content, bytes) else content.encode())

    def link(self, name, to):
        self.folder(os.path.dirname(name))
        self._entry(name, stat.S_IFLNK | 0o777, to.encode())

    def device(self, name, major, minor):
        self.folder(os.path.dirname(name))
        self._entry(name, stat.S_IFCHR | 0o600, b"", major, minor)

    def bytes(self):
        self._entry("TRAILER!!!", 0)
        return gzip.compress(bytes(self.data), 1)


class Pi:
    """model is a key of MODELS, midge the binary, config the text of its configuration, files what else lies in
    /etc/midge; all in the folder dir."""

    def __init__(self, model, midge, config, dir, files=()):
        self.model = MODELS[model]
        self.tree = os.path.join(KERNELS, self.model.arch, "root")
        self.dir = str(dir)
        self.ports = free_port(), free_port()
        self.disk = os.path.join(self.dir, "disk.img")
        self.initrd = os.path.join(self.dir, "initrd.gz")
        self.process = None
        with open(self.disk, "wb") as f:
            f.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^metadata_csum", self.disk], check=True)
        with open(self.initrd, "wb") as f:
            f.write(self._root(midge, config, dict(files)).bytes())

    def _root(self, midge, config, files):
        root = Archive()
        root.device("dev/console", 5, 1)
        root.device("dev/null", 1, 3)
        root.file("bin/busybox", read(os.path.join(self.tree, "bin", "busybox")), 0o755)
        root.link("init", "bin/busybox")
        # the names of BusyBox's programs: the PC has the same version
        for name in ("sh cat chmod chown cp date echo grep head id ifconfig insmod kill ls mkdir mount mv ps rm sed "
                     "sleep start-stop-daemon sync tail test uname [").split():
            root.link("bin/" + name, "busybox")
        for name in "proc sys run tmp var/lib/midge var/log".split():
            root.folder(name)
        root.link("var/run", "/run")
        root.file("etc/inittab", INITTAB)
        root.file("etc/console", CONSOLE)
        root.file("etc/init.d/rcS", RC_S.replace("{disk}", self.model.disk), 0o755)
        root.file("etc/passwd", "root:x:0:0::/:/bin/sh\nmidge:x:88:88::/var/lib/midge:/bin/false\n"
                  "nobody:x:99:99::/:/bin/false\n")
        root.file("etc/group", "root:x:0:\nmidge:x:88:\nnobody:x:99:\n")
        modules = module_order(self.tree, self.model.modules)
        for name, file in modules:
            root.file(f"modules/{name}.ko", read(file))
        root.file("modules/order", " ".join(name for name, _ in modules))
        root.file("usr/sbin/midge", read(midge), 0o755)
        root.file("etc/init.d/S50midge", read(os.path.join(ROOT, "cross", "init", "midge.init")), 0o755)
        root.file("etc/midge/midge.conf", config)
        for name, content in files.items():
            root.file("etc/midge/" + name, content, 0o644)
        return root

    def boot(self):
        """Switches the machine on; it takes its time, see await_line()."""
        kernel, = glob.glob(os.path.join(self.tree, "boot", "vmlinuz-*"))
        dtb = glob.glob(os.path.join(self.tree, "usr/lib/linux-image-*/bcm2835-rpi-zero.dtb"))
        words = [w.format(dtb="".join(dtb), disk=self.disk) for w in self.model.qemu]
        forward = "".join(f",hostfwd=tcp:127.0.0.1:{p}-10.0.2.15:{q}" for p, q in zip(self.ports, (1883, 8883)))
        self.output = bytearray()
        self.process = subprocess.Popen(
            words + ["-kernel", kernel, "-initrd", self.initrd, "-append", self.model.kernel_line + " rdinit=/init quiet",
                     "-netdev", "user,id=net,restrict=on" + forward, "-nographic", "-nodefaults", "-serial", "stdio",
                     "-no-reboot"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return self

    def await_line(self, regex, after=0, timeout=120):
        """The match of what the machine says on its console, from byte `after` on."""
        deadline = time.monotonic() + timeout
        fd = self.process.stdout.fileno()
        while True:
            found = re.search(regex.encode(), self.output[after:])
            if found:
                return found
            left = deadline - time.monotonic()
            assert left > 0, f"no /{regex}/ from\n{self.console()}"
            if select.select([fd], [], [], left)[0]:
                chunk = os.read(fd, 65536)
                assert chunk, f"the machine has ended:\n{self.console()}"
                self.output += chunk

    def console(self):
        return self.output.decode(errors="replace").replace("\r", "")

    def run(self, line, timeout=60):
        """Runs a line of shell on the machine's console, returns what it prints."""
        after = len(self.output)
        # The echo of what is typed has quotes between the two words of the mark.
        self.process.stdin.write(f"echo BE'GIN'; {line}; echo EN'D'\n".encode())
        self.process.stdin.flush()
        found = self.await_line(r"BEGIN\r?\n([^\0]*?)END\r?\n", after, timeout)
        return found.group(1).decode(errors="replace").replace("\r", "")

    def pull_the_plug(self):
        """Ends the emulator at once; only what had been written to the disk is left."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stdin.close()
        self.process = None

    def end(self):
        if self.process is not None:
            self.pull_the_plug()
