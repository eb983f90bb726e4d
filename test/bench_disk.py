"""What test/bench.py needs for storage on disk: a disk of its own, whose writes are counted.

For root it is a file with an ext4, mounted by way of a loop device, so that the bytes are those
that reach the device: data, metadata, the file system's own journal. Else the bytes that the
broker and its children have handed to the system, from /proc/PID/io.
"""

import os
import shutil
import subprocess
import tempfile
import time

import disk
import wire

SIZE = 512 << 20
WINDOW = 500


class Disk:
    """with Disk() as d: config for a broker that stores there, and what has been written."""

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="bench-disk-")
        os.chmod(self.dir, 0o755)
        self.folder = os.path.join(self.dir, "data")
        os.mkdir(self.folder)
        self.kind = "device" if self._mount() else "system"
        os.chmod(self.folder, 0o777)
        self.tricks = disk.Disk()
        self.before = {name: os.environ.get(name) for name in self.tricks.env}
        os.environ.update(self.tricks.env)      # the broker is started with it
        return self

    def __exit__(self, *_):
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self.tricks.cleanup()
        if self.kind == "device":
            subprocess.run(["umount", self.folder], check=True)
        shutil.rmtree(self.dir)

    def _mount(self):
        image = os.path.join(self.dir, "image")
        if os.geteuid() != 0:
            return False
        with open(image, "wb") as f:
            f.truncate(SIZE)
        return not subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image]
                                  ).returncode and \
            not subprocess.run(["mount", "-o", "loop", image, self.folder]).returncode

    def config(self, program, each=True):
        """Mosquitto is told to store each change, as far as it does; else at its end."""
        lines = ["persistence true", f"persistence_location {self.folder}/"]
        if each and "mosquitto" in os.path.basename(program):
            lines += ["autosave_on_changes true", "autosave_interval 1"]
        return "".join(line + "\n" for line in lines)

    def syncs(self):
        return self.tricks.syncs()

    def written(self):
        """Bytes so far, with all that the file system has still to write."""
        if self.kind != "device":
            return self._handed_over()
        subprocess.run(["sync", "-f", self.folder], check=True)
        device = os.stat(self.folder).st_dev
        with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat") as f:
            return int(f.read().split()[6]) * 512

    def _handed_over(self):
        total = 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as f:
                    if self.tricks.dir.encode() not in f.read():
                        continue
                with open(f"/proc/{pid}/io") as f:
                    total += int(f.read().split("write_bytes:")[1].split()[0])
            except OSError:
                pass
        return total


def connect(port, client_id, **options):
    client = wire.Client(("127.0.0.1", port), timeout=60)
    client.connect(client_id, **options)
    return client


def publish(client, topics, payload, retain, at_once=WINDOW, pause=0):
    """QoS 1, so many at once."""
    topics = list(topics)
    for at in range(0, len(topics), at_once):
        some = topics[at:at + at_once]
        client.send(b"".join(wire.publish(wire.V311, topic, payload, 1, retain, pid=i + 1)
                             for i, topic in enumerate(some)))
        for _ in some:
            client.expect(wire.PUBACK)
        time.sleep(pause)


def retain(port, numbers, size, **options):
    client = connect(port, "publisher")
    publish(client, (f"retained/{i % 100}/{i}" for i in numbers), "x" * size, True, **options)
    client.disconnect()


def subscribe(port):
    client = connect(port, "lasting", clean=False)
    client.subscribe(("queued/#", 1))
    client.disconnect()


def queue(port, n):
    client = connect(port, "publisher")
    publish(client, (f"queued/{i % 10}" for i in range(n)), "x" * 100, False)
    client.disconnect()


def count(port):
    """How many messages wait for the lasting session."""
    client = connect(port, "lasting", clean=False)
    found = 0
    try:
        while True:
            client.expect_publish(timeout=2)
            found += 1
    except AssertionError:
        return found
