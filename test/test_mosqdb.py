"""mosqdb: databases of Mosquitto 2.0 itself, hand-made ones of both formats, damaged ones."""

import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time

import pytest

import wire

TOOL = os.path.join(os.environ.get("BUILD", "build"), "storetool")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


def read(path):
    """The lines of storetool mosqdb; the last one is the result."""
    done = subprocess.run([TOOL, "mosqdb", path], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.splitlines()


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(prefix="midge-mosqdb-") as path:
        yield path


# ---- hand-made ----

def header(version):
    return b"\x00\xb5\x00mosquitto db" + struct.pack(">II", 0, version)


def chunk(kind, data):
    return struct.pack(">II", kind, len(data)) + data


def config(size=8):
    return chunk(1, struct.pack("<QBB6x", 99, 1, size))


def message(store_id, topic, payload, qos=1, retain=0, expires=0, props=b"", source=b"src"):
    return chunk(2, struct.pack("<Qq", store_id, expires) +
                 struct.pack(">IHHHHHBB", len(payload), 7, len(source), 0, len(topic), 1883, qos, retain) +
                 source + topic + payload + props)


def queued(client, store_id, state, mid=1, qos=1, flags=0, direction=1, props=b""):
    return chunk(3, struct.pack("<Q", store_id) +
                 struct.pack(">HHBBBB", mid, len(client), qos, state, flags, direction) + client + props)


def retained(store_id):
    return chunk(4, struct.pack("<Q", store_id))


def subscription(client, filter, qos=1, options=0, identifier=0):
    return chunk(5, struct.pack(">IHHBB2x", identifier, len(client), len(filter), qos, options) + client + filter)


def client5(name, expires=0, interval=0xFFFFFFFF, mid=3):
    return chunk(6, struct.pack("<q", expires) + struct.pack(">IHH", interval, mid, len(name)) + name)


def client6(name, user=b"", expires=0, interval=0xFFFFFFFF, mid=3, padding=4):
    return chunk(6, struct.pack("<q", expires) + struct.pack(">IHHHH", interval, mid, len(name), 1883, len(user)) +
                 bytes(padding) + name + user)


def written(place, *parts):
    path = os.path.join(place, "mosquitto.db")
    with open(path, "wb") as f:
        f.write(b"".join(parts))
    return path


BODY = [config(), message(0x35, b"a/b", b"hello", qos=2, retain=1, expires=1795269045,
                          props=bytes.fromhex("0726 0001 6b 0001 76")),
        message(0x36, b"c", b""), subscription(b"s1", b"a/#", 2, 0x0C, 7), retained(0x35),
        queued(b"s1", 0x35, 11, 5, 2, 0x11, 1, bytes.fromhex("020b07")), queued(b"s1", 0x36, 7, 9, 2, 0, 0)]
LINES = ["message 35 a/b payload hello qos 2 retain 1 expires 1795269045 props 2600016b000176",
         "message 36 c payload  qos 1 retain 0 expires 0 props ",
         "subscription s1 a/# qos 2 nolocal 1 rap 1 id 7", "retained 35",
         "queued to s1 35 mid 5 qos 2 state 11 dup 1 retain 1 id 7",
         "queued from s1 36 mid 9 qos 2 state 7 dup 0 retain 0"]


def test_format_5(place):
    path = written(place, header(5), *BODY, client5(b"s1", 1795269545, 1000))
    lines = read(path)
    assert lines[:-1] == LINES + ["client s1 user  expires 1795269545 interval 1000 mid 3"]
    assert lines[-1].startswith("result 0 version 5 ") and "skipped 0" in lines[-1]


@pytest.mark.parametrize("padding", [0, 4])
def test_format_6(place, padding):
    """With the padding of 64-bit machines, and without."""
    path = written(place, header(6), *BODY, client6(b"s1", b"joe", padding=padding))
    lines = read(path)
    assert lines[:-1] == LINES + ["client s1 user joe expires 0 interval 4294967295 mid 3"]
    assert lines[-1].startswith("result 0 version 6 ")


def test_what_no_packet_could_have_brought_is_left_out(place):
    bad = [message(1, b"a/#", b"x"), message(2, b"\xff", b"x"), message(3, b"", b"x"), message(4, b"t", b"x", qos=3),
           message(5, b"t", b"x", props=b"\x05\x26\x00\x01"), subscription(b"", b"a"), subscription(b"s", b"a/#/b"),
           subscription(b"s", b"a", qos=3), queued(b"s", 1, 0), queued(b"s", 1, 12), queued(b"\xc0", 1, 3),
           client6(b"")]
    lines = read(written(place, header(6), config(), *bad, chunk(77, b"from the future"), retained(9)))
    assert lines[:-1] == ["retained 9"]
    assert lines[-1].startswith("result 0") and f"skipped {len(bad)} " in lines[-1]


def test_cut_and_damaged_files(place):
    parts = [header(6), *BODY, client6(b"s1")]
    ends = [sum(map(len, parts[:i + 1])) for i in range(len(parts))]
    data = b"".join(parts)
    for at in range(len(data)):
        lines = read(written(place, data[:at])) if at % 7 == 0 or at in ends else None
        if lines is None:
            continue
        whole = sum(end <= at for end in ends)
        want = max(whole - 2, 0)        # header and config print nothing
        assert len(lines) == want + 1
        kind = 2 if at < ends[0] else 0 if at in ends else 1
        assert lines[-1].startswith(f"result {kind} "), lines
        if kind == 1:
            assert f"offset {ends[whole - 1]} " in lines[-1]
    lines = read(written(place, data, bytes(100)))
    assert lines[-1].startswith("result 1 ") and "no type" in lines[-1]
    lines = read(written(place, header(6), chunk(2, b"short")))
    assert lines[-1].startswith("result 1 ") and "length" in lines[-1]
    lines = read(written(place, header(6), struct.pack(">II", 2, 0xFFFFFFFF), b"x"))
    assert lines[-1].startswith("result 1 ") and "ends within" in lines[-1]


@pytest.mark.parametrize("data,why", [
    (b"", "not a database"), (bytes(1000), "not a database"), (b"SQLite format 3\0" * 9, "not a database"),
    (header(4) + config(), "before Mosquitto 1.6"), (header(7) + config(), "after Mosquitto 2.1"),
], ids=["empty", "zeros", "sqlite", "old", "new"])
def test_other_files(place, data, why):
    lines = read(written(place, data))
    assert len(lines) == 1 and lines[0].startswith("result 2 ") and why in lines[0]


def test_other_byte_order(place):
    lines = read(written(place, header(6), config(0), retained(1)))
    assert len(lines) == 1 and "byte order" in lines[0]


def test_no_file(place):
    assert read(os.path.join(place, "none"))[0].startswith("result 3 ")
    assert read(place)[0].startswith("result 2 ")


# ---- written by Mosquitto ----

class Mosquitto:
    def __init__(self, place):
        self.db = os.path.join(place, "mosquitto.db")
        with socket.create_server(("127.0.0.1", 0)) as s:
            self.address = s.getsockname()
        conf = os.path.join(place, "m.conf")
        with open(conf, "w") as f:
            f.write(f"listener {self.address[1]} 127.0.0.1\nallow_anonymous true\npersistence true\n"
                    f"persistence_location {place}/\nmax_inflight_messages 1\nuser root\n")
        self.process = subprocess.Popen([MOSQUITTO, "-c", conf], stderr=subprocess.DEVNULL)

    def connect(self, client_id, version, **options):
        """Waits for the port as long as Mosquitto needs to open it."""
        deadline = time.monotonic() + 20
        while True:
            try:
                client = wire.Client(self.address, version=version)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline and self.process.poll() is None
                time.sleep(0.02)
        client.connect(client_id, **options)
        return client

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def mosquitto(place):
    if not MOSQUITTO:
        pytest.skip("mosquitto is not installed")
    broker = Mosquitto(place)
    yield broker
    broker.process.kill()
    broker.process.wait()


def test_database_of_mosquitto(mosquitto):
    sub = mosquitto.connect("sub", wire.V5, clean=False, properties={"session_expiry_interval": 1000})
    sub.subscribe("t/#", qos=2, properties={"subscription_identifier": 7})
    sub.subscribe("old/+", qos=1)
    old = mosquitto.connect("old", wire.V311, clean=False)
    old.subscribe("old/x", qos=1)
    old.close()
    sub.close()
    pub = mosquitto.connect("pub", wire.V5)
    pub.publish("t/1", "one", 1, retain=True, properties={"message_expiry_interval": 500,
                                                         "user_property": ("k", "v")})
    pub.publish("t/2", "two", 2)
    pub.publish("old/x", "three", 1)
    pub.publish("r", "kept", 0, retain=True)
    # One that is received and not released, of a session that lasts.
    half = mosquitto.connect("half", wire.V311, clean=False)
    half.send(wire.publish(wire.V311, "t/3", "half", 2, pid=77))
    half.expect(wire.PUBREC)
    # The first of the queued is taken, but not acknowledged.
    old = mosquitto.connect("old", wire.V311, clean=False)
    old.expect(wire.PUBLISH)
    mosquitto.stop()
    lines = read(mosquitto.db)
    assert lines[-1].startswith("result 0 version 6 ") and "skipped 0" in lines[-1], lines
    ids = {}
    for line in lines:
        if line.startswith("message"):
            ids[line.split()[2]] = line.split()[1]
    body = "\n".join(lines)
    assert f"message {ids['t/1']} t/1 payload one qos 1 retain 1 expires 1" in body
    assert "props 2600016b000176" in body
    assert f"retained {ids['t/1']}\n" in body and f"retained {ids['r']}\n" in body
    assert "client sub user  expires 1" in body and "interval 1000 " in body
    assert "client old user  expires 0 interval 4294967295 mid 1" in body
    assert "subscription sub t/# qos 2 nolocal 0 rap 0 id 7" in body
    assert "subscription sub old/+ qos 1 nolocal 0 rap 0 id 0" in body
    assert "subscription old old/x qos 1 nolocal 0 rap 0 id 0" in body
    assert f"queued to old {ids['old/x']} mid 1 qos 1 state 3 dup 1 retain 0" in body
    assert f"queued from half {ids['t/3']} mid 77 qos 2 state 7 dup 0 retain 0" in body
    to_sub = [line.split()[3] for line in lines if line.startswith("queued to sub")]
    assert to_sub == [ids["t/1"], ids["t/2"], ids["old/x"]]
