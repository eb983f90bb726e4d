"""What store leaves on the disk, whatever the disk does: see storetool.c and faults.h.

A run of storetool adds numbers to a journal and says which are acknowledged. Each test asks the
same: is every acknowledged number there, in order, and no group of them in part?
"""

import errno
import os
import shutil
import random
import struct
import subprocess
import tempfile

import pytest

TOOL = os.path.join(os.environ.get("BUILD", "build"), "storetool")
SECTOR = 512
ALIVE = 20
STATES = int(os.environ.get("STORE_STATES", "300"))
SEED = int(os.environ.get("STORE_SEED", "0")) or random.randrange(1, 1 << 30)


# In memory where there is such a place: thousands of syncs need no disk to be slow.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(prefix="midge-store-", dir=MEMORY) as path:
        yield path


def run(path, n, seed=1, **env):
    """storetool run: what it found, what it acknowledged last, its output and errors."""
    done = subprocess.run([TOOL, "run", path, str(n), str(seed)], capture_output=True, text=True,
                          timeout=50, env={**os.environ, **env})
    assert "Sanitizer" not in done.stderr, done.stderr
    acked = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("acked")]
    return acked[-1] if acked else 0, done


def check(paths):
    """storetool check: (verdict, first, last) per directory."""
    done = subprocess.run([TOOL, "check"], input="\n".join(paths) + "\n", capture_output=True,
                          text=True, timeout=50, check=True)
    rows = [line.split(" ", 3) for line in done.stdout.splitlines()]
    assert len(rows) == len(paths)
    return [(row[0], int(row[1]), int(row[2])) for row in rows]


def assert_recovered(verdict, acked, appended=None, what=""):
    good, first, last = verdict
    assert good == "good", what
    assert last >= acked, f"{what}: {acked} were acknowledged, {last} are there"
    assert first == max(1, last - ALIVE + 1) or last == 0, f"{what}: {first} to {last}"
    if appended:
        assert last <= appended, what


# ---- states after a power cut ----

def events(path):
    """The trace: (type, inode, offset, a, b)."""
    with open(path, "rb") as f:
        data = f.read()
    at = 0
    while at < len(data):
        kind, ino, off, n1, n2 = struct.unpack_from("=cQQII", data, at)
        at += 25
        yield kind.decode(), ino, off, data[at:at + n1], data[at + n1:at + n1 + n2]
        at += n1 + n2


class File:
    def __init__(self):
        self.durable = bytearray()
        self.pending = []       # (offset, data), or (size, None)

    def latest(self):
        data = bytearray(self.durable)
        for off, new in self.pending:
            apply(data, off, new)
        return data

    def sync(self):
        self.durable = self.latest()
        self.pending = []

    def after_cut(self, rng, mode):
        """Of what was not synced, each sector is as it was after any of the writes to it."""
        if mode == "lost":
            return bytes(self.durable)
        if mode == "kept":
            return bytes(self.latest())
        versions = {}
        data = bytearray(self.durable)
        for off, new in self.pending:
            apply(data, off, new)
            if new is not None:
                for sector in range(off // SECTOR, (off + len(new) - 1) // SECTOR + 1):
                    part = bytes(data[sector * SECTOR:(sector + 1) * SECTOR])
                    versions.setdefault(sector, []).append(part)
        out = bytearray(self.durable)
        one = rng.choice(sorted(versions)) if versions else None
        for sector, parts in versions.items():
            if mode == "one lost":
                part = None if sector == one else parts[-1]
            else:
                part = rng.choice([None] + parts)
            if part is not None:
                apply(out, sector * SECTOR, part)
        return bytes(out)


def apply(data, off, new):
    if new is None:
        if off < len(data):
            del data[off:]
        else:
            data.extend(bytes(off - len(data)))
        return
    if off + len(new) > len(data):
        data.extend(bytes(off + len(new) - len(data)))
    data[off:off + len(new)] = new


class Disk:
    """One directory: files by inode, names, and what of both is not synced yet. Changes of the
    names reach the disk in their order, as in the journal of a file system, at any time."""

    def __init__(self, path):
        self.root = os.fsencode(path) + b"/"
        self.ino = os.stat(path).st_ino
        self.files = {}
        self.names = {}         # on the disk
        self.changes = []       # not yet
        self.acked = 0

    def feed(self, kind, ino, off, a, b):
        if kind == "a":
            self.acked = off
        elif kind == "s" and ino == self.ino:
            self.names = self.names_after(len(self.changes))
            self.changes = []
        elif kind == "s":
            self.file(ino).sync()
        elif kind == "w":
            self.file(ino).pending.append((off, a))
        elif kind == "z":
            self.file(ino).pending.append((off, None))
        elif kind == "c":
            if off:
                self.file(ino).pending.append((0, None))
            self.changes.append(("c", self.name(a), ino))
        elif kind == "r":
            self.changes.append(("r", self.name(a), self.name(b)))
        elif kind == "u":
            self.changes.append(("u", self.name(a), None))

    def file(self, ino):
        return self.files.setdefault(ino, File())

    def name(self, path):
        assert path.startswith(self.root)
        return path[len(self.root):].decode()

    def names_after(self, n):
        names = dict(self.names)
        for kind, name, arg in self.changes[:n]:
            if kind == "c":
                names[name] = arg
            elif kind == "r":
                names[arg] = names.pop(name)
            else:
                names.pop(name, None)
        return names

    def write_cut(self, path, rng):
        mode = rng.choice(["lost", "kept", "one lost", "mixed", "mixed", "mixed"])
        n = rng.choice([0, len(self.changes), rng.randint(0, len(self.changes))])
        os.mkdir(path)
        for name, ino in self.names_after(n).items():
            with open(os.path.join(path, name), "wb") as f:
                f.write(self.file(ino).after_cut(rng, mode))
        return f"{mode}, {n} of {len(self.changes)} changes of names"


@pytest.mark.parametrize("part", range(4))
def test_power_cut_at_any_moment(place, part):
    rng = random.Random(SEED + part)
    path, trace = os.path.join(place, "journal"), os.path.join(place, "trace")
    os.mkdir(path)
    acked, done = run(path, 300, seed=SEED + part, FAULTS_TRACE=trace)
    assert done.returncode == 0 and acked >= 300, done.stderr
    # A second life upon the first, with what it left behind.
    acked, done = run(path, 100, seed=SEED - part, FAULTS_TRACE=trace)
    assert done.returncode == 0 and acked >= 400, done.stderr
    all_events = list(events(trace))
    moments = set(rng.sample(range(len(all_events)), min(STATES // 2, len(all_events))))
    disk = Disk(path)
    cuts = []
    for i, event in enumerate(all_events):
        disk.feed(*event)
        for k in range(2 if i in moments else 0):
            where = os.path.join(place, f"cut{i}.{k}")
            cuts.append((where, disk.acked, f"seed {SEED + part}, event {i}: " + disk.write_cut(where, rng)))
    assert len(cuts) >= min(STATES // 2, 100)
    for (where, acked, what), verdict in zip(cuts, check([cut[0] for cut in cuts])):
        assert_recovered(verdict, acked, what=what)
    # A broker goes on from some of them, and the next one finds all of it.
    for where, acked, what in rng.sample(cuts, 12):
        last = check([where])[0][2]
        now, done = run(where, 20, seed=part)
        assert f"found {last} 0" in done.stdout, what + done.stderr
        assert now >= last + 20, what
        assert_recovered(check([where])[0], now, what=what)


def test_the_simulation_notices_a_missing_sync(place):
    """The check above can fail: with the syncs of data taken out of the trace it does."""
    path, trace = os.path.join(place, "journal"), os.path.join(place, "trace")
    os.mkdir(path)
    run(path, 100, FAULTS_TRACE=trace)
    disk = Disk(path)
    sizes = {}
    for kind, ino, off, a, b in events(trace):
        if kind == "w":
            sizes[ino] = max(sizes.get(ino, 0), off)
        if kind == "s" and ino != disk.ino and disk.acked > 0:
            continue
        disk.feed(kind, ino, off, a, b)
    lost = 0
    rng = random.Random(1)
    for k in range(10):
        where = os.path.join(place, f"cut{k}")
        disk.write_cut(where, rng)
        lost += check([where])[0][2] < disk.acked
    assert lost > 0


# ---- faults ----

FAULTS = [("pwrite", errno.EIO), ("pwritev", errno.ENOSPC), ("pwritev", errno.EIO),
          ("fdatasync", errno.EIO), ("fsync", errno.EIO), ("rename", errno.EROFS),
          ("open", errno.EMFILE), ("fallocate", errno.ENOSPC), ("ftruncate", errno.EIO),
          ("fork", errno.EAGAIN)]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("call,error", FAULTS, ids=lambda v: errno.errorcode.get(v, v))
def test_each_call_fails_in_turn(place, call, error, times):
    for k in list(range(1, 12)) + [15, 22, 31, 40]:
        path = os.path.join(place, f"{call}{k}")
        acked, done = run(path, 60, seed=k, FAULTS_FAIL=f"{call}:{k}:{times}:{error}")
        what = f"{call} {k}: {done.stderr}"
        if done.returncode == 2:
            # It could not even be opened, and says why.
            assert "Error: " in done.stderr, what
            acked, done = run(path, 60, seed=k)
        assert done.returncode == 0, what
        assert acked >= 60 and "trouble 0" in done.stdout and "closed 1" in done.stdout, what
        assert_recovered(check([path])[0], acked, what=what)


@pytest.mark.parametrize("call,error", [("open", errno.EMFILE), ("open", errno.EACCES), ("realloc", errno.ENOMEM),
                                        ("pread", errno.ESTALE), ("pread", errno.ENOMEM)],
                         ids=lambda v: errno.errorcode.get(v, v))
def test_reading_fails_in_turn(place, call, error):
    """What cannot be read just now is not damage: the start is refused, or nothing is missing."""
    path = os.path.join(place, "journal")
    for seed in 1, 2, 3, 4:     # several segments, that continue each other
        acked, done = run(path, 60, seed=seed)
    refused = 0
    for k in range(1, 40):
        copy = os.path.join(place, f"{call}{k}")
        shutil.copytree(path, copy)
        now, done = run(copy, 5, FAULTS_FAIL=f"{call}:{k}:1:{error}")
        what = f"{call} {k}: {done.stdout} {done.stderr}"
        assert done.returncode in (0, 2), what
        refused += done.returncode == 2
        if done.returncode == 2:
            assert "Error: " in done.stderr, what
        assert "damaged" not in done.stderr, what
        assert_recovered(check([copy])[0], acked, what=what)
        shutil.rmtree(copy)
    assert refused > 2


@pytest.mark.parametrize("call,error", [("pwritev", errno.ENOSPC), ("fdatasync", errno.EIO)],
                         ids=["full", "EIO"])
def test_a_disk_that_stays_bad(place, call, error):
    """Nothing more is acknowledged, one line says so, and what was acknowledged is kept."""
    path = os.path.join(place, "journal")
    acked, done = run(path, 300, FAULTS_FAIL=f"{call}:30:1000000:{error}")
    assert 0 < acked < 300
    assert f"trouble {error}" in done.stdout and "closed 0" in done.stdout
    assert done.stderr.count(os.strerror(error)) == 2, done.stderr      # the trouble, and the end
    assert_recovered(check([path])[0], acked)
    again, done = run(path, 20)
    assert done.returncode == 0 and again >= acked + 20


def test_a_slow_sync_stops_nothing(place):
    path, gate = os.path.join(place, "journal"), os.path.join(place, "gate")
    os.mkfifo(gate)
    tool = subprocess.Popen([TOOL, "run", path, "50", "1"], stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "FAULTS_GATE": gate})
    try:
        assert tool.stdout.readline() == "found 0 0\n"
        assert tool.stdout.readline() == "50 turns\n"       # while the first sync waits
        while tool.poll() is None:
            try:
                os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
            except OSError as e:
                assert e.errno == errno.ENXIO               # no sync waits at the moment
                os.sched_yield()
        rest = tool.stdout.read()
        assert rest.startswith("acked ") and "closed 1" in rest
    finally:
        tool.kill()
        tool.wait()
        tool.stdout.close()


# ---- processes ----

def test_killed_again_and_again(place):
    """kill -9 at any moment: the next one finds all that was acknowledged."""
    path = os.path.join(place, "journal")
    rng = random.Random(SEED)
    acked = 0
    for k in range(30):
        tool = subprocess.Popen([TOOL, "run", path, "1000", str(k)], stdout=subprocess.PIPE, text=True)
        found = tool.stdout.readline().split()
        for _ in range(rng.randint(0, 40)):
            acked = int(tool.stdout.readline().split()[1])
        tool.kill()
        for line in tool.stdout:
            acked = int(line.split()[1]) if line.startswith("acked") and line.endswith("\n") else acked
        tool.wait()
        tool.stdout.close()
        assert found[0] == "found" and found[2] == "0", f"seed {SEED}, run {k}"
        assert_recovered(check([path])[0], acked, what=f"seed {SEED}, run {k}")
    names = os.listdir(path)
    assert len(names) < 30 and not [name for name in names if "damaged" in name], names


def test_two_at_once(place):
    path = os.path.join(place, "journal")
    first = subprocess.Popen([TOOL, "run", path, "100000", "1"], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline().startswith("found")
        acked, done = run(path, 1)
        assert done.returncode == 2
        assert f"in use by process {first.pid} (storetool)" in done.stderr
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    acked, done = run(path, 1)
    assert done.returncode == 0, done.stderr


def test_trouble_is_told_once_and_its_end_too(place):
    acked, done = run(os.path.join(place, "journal"), 60, FAULTS_FAIL=f"pwritev:4:9:{errno.ENOSPC}")
    lines = done.stderr.splitlines()
    assert sum("writing failed: No space left on device" in line for line in lines) == 1
    assert sum("the disk works again" in line for line in lines) == 1
