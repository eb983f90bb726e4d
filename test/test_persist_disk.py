"""Persistence on a disk that is slow, full or broken: see disk.py for how it gets that way.

Slow: only what waits for the disk waits. Bad: nothing is acknowledged that is not stored, all
else goes on, and when the disk is well again, so is the broker.
"""

import errno
import os
import shutil
import signal
import subprocess
import time

import pytest

import wire
from durable import (FOREVER, eventually, join, journal_of, kill, lasting, received,  # noqa: F401
                     tricks)
from v5 import let_pass
from wire import (publish, V311, V5, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, CONNACK,
                  wait_for)

QUOTA, UNAVAILABLE = 0x97, 0x88
PATIENCE_S = 2          # shorter trouble makes clients wait only


@pytest.fixture
def slow(lasting, tricks, join):
    """(broker, disk): lasting session "a" with a subscription to "a/#" at QoS 2, all syncs held."""
    d = tricks()
    broker = lasting(env=d.env)
    a = join(broker, "a")
    a.subscribe(("a/#", 2))
    a.disconnect()
    yield broker, d
    d.well()


def hold(broker, d, join):
    """From here on a sync is under way that takes as long as the test likes."""
    other = join(broker, "other")
    d.hold()
    before = d.syncs()
    other.publish("a/first", "x", qos=1, flow=False)
    wait_for(lambda: d.syncs() > before, "sync")
    return other


# ---- slow ----

def test_what_needs_no_disk_passes(slow, connect, join):
    broker, d = slow
    waiting = hold(broker, d, join)
    b, c = connect(broker=broker), connect(broker=broker, version=V5)
    for client in b, c:
        client.subscribe(("b", 2))
        client.unsubscribe("b")
        client.subscribe(("b", 2))
    for qos in 0, 1, 2:
        b.publish("b", f"{qos}", qos=qos)
        for client in b, c:
            client.expect_publish("b", f"{qos}", qos=qos)
    b.publish("a/x", "0")
    b.publish("r", "retained", qos=0, retain=True)
    connect(broker=broker).disconnect()
    waiting.nothing()
    # Who waits gets what others send, and sends himself, past his own acknowledgement.
    waiting.publish("b", "hello")
    b.expect_publish("b", "hello")
    d.go()
    waiting.expect(PUBACK)


@pytest.mark.parametrize("version", [V311, V5])
def test_acknowledgements_wait(slow, connect, join, version):
    broker, d = slow
    b = join(broker, "b", version)
    first = hold(broker, d, join)
    asks = [(wire.publish(version, "a/1", "x", 1, pid=10), PUBACK),
            (wire.publish(version, "a/2", "x", 2, pid=11), PUBREC),
            (wire.publish(version, "r", "x", 1, True, pid=12), PUBACK),
            (wire.subscribe(version, 13, [("b", 1)]), SUBACK), (wire.unsubscribe(version, 14, ["b"]), UNSUBACK)]
    for data, _ in asks:
        b.send(data)
        b.nothing()
    d.go()
    first.expect(PUBACK)
    got = [b.receive() for _ in asks]
    assert [(p.type, p.pid) for p in got] == [(type, 10 + i) for i, (_, type) in enumerate(asks)]
    d.hold()
    b.ack(PUBREL, 11)
    b.nothing()
    d.go()
    b.expect(PUBCOMP, pid=11)
    kill(broker)
    a = join(broker, "a", present=True)
    assert eventually(a, [("a/1", "x"), ("a/2", "x")]) == [("a/first", "x"), ("a/1", "x"), ("a/2", "x")]


@pytest.mark.parametrize("version", [V311, V5])
def test_connack_of_a_lasting_session_waits(slow, dial, join, version):
    broker, d = slow
    hold(broker, d, join)
    b = dial(broker, version=version)
    b.send(wire.connect(version, "b", False, properties=FOREVER if version == V5 else None))
    wait_for(lambda: " as b " in broker.log() or "CONNACK to b" in broker.log(), "log line")
    b.send(wire.pingreq())
    late = dial(broker)
    late.connect("clean")
    late.ping()
    assert not b.inbox and not has_bytes(b)
    d.go()
    b.expect(CONNACK, reason=0, session_present=False)
    b.expect(wire.PINGRESP)
    kill(broker)
    join(broker, "b", version, present=True)


def has_bytes(client):
    client.sock.setblocking(False)
    try:
        return bool(client.sock.recv(1, wire.socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_qos_2_to_the_client_waits_for_its_number(slow, connect, join):
    """The client knows the message by a number that a restart must not forget."""
    broker, d = slow
    a = join(broker, "a", present=True)
    b = connect(broker=broker)
    d.hold()
    b.publish("a/1", "x", qos=2, flow=False)
    a.nothing()
    d.go()
    p = a.expect_publish("a/1", "x", qos=2, flow=False)
    b.expect(PUBREC)
    d.hold()
    a.ack(PUBREC, p.pid)
    a.nothing()
    d.go()
    a.expect(PUBREL, pid=p.pid)


def test_killed_while_a_sync_waits(slow, join):
    """What was not acknowledged may be lost or there, once; the new broker does not wait for the
    helper of the old one."""
    broker, d = slow
    b = hold(broker, d, join)
    b.publish("a/2", "y", qos=2, pid=9, flow=False)
    b.nothing()
    broker.kill()
    d.go()
    broker.start()
    b = join(broker, "other", present=True)
    b.publish("a/2", "y", qos=2, pid=9, dup=True, flow=False)
    b.expect(PUBREC, pid=9)
    b.pubrel(9)
    a = join(broker, "a", present=True)
    assert [m for m in eventually(a, [("a/2", "y")]) if m[0] == "a/2"] == [("a/2", "y")]


def test_keep_alive_of_those_who_wait(slow, join):
    """Whoever sends PINGREQ in time stays, though the disk does not answer for long."""
    broker, d = slow
    hold(broker, d, join)
    b = join_waiting(broker, join, d)
    start = time.monotonic()
    for i in range(1, 7):
        let_pass(start, i / 2)
        b.nothing()
    d.go()
    b.expect(PUBACK, pid=10)


def join_waiting(broker, join, d):
    """A client with a keep-alive of a second that waits for a PUBACK."""
    d.go()
    b = join(broker, "b", keepalive=1)
    d.hold()
    b.publish("a/1", "x", qos=1, pid=10, flow=False)
    b.nothing()
    return b


def test_keep_alive_of_those_who_are_not_read(slow, join):
    """Whoever has sent more than may wait for the disk is not read for a while. That is no reason
    to say that he was silent."""
    broker, d = slow
    b = join(broker, "b", keepalive=1)
    hold(broker, d, join)
    block = "x" * 900000
    b.sock.settimeout(0.2)
    stuck, sent, start = b"", 0, time.monotonic()
    for pid in range(100, 120):
        stuck += wire.publish(V5, "a/1", block, 1, pid=pid)
    while sent < len(stuck) and time.monotonic() < start + 4:
        try:
            sent += b.sock.send(stuck[sent:sent + 65536])
        except wire.socket.timeout:
            pass
    d.go()
    b.send(stuck[sent:])
    assert [b.await_packet(PUBACK).pid for _ in range(20)] == list(range(100, 120))


def test_many_messages_share_a_sync(slow, join):
    broker, d = slow
    b = hold(broker, d, join)
    b.send(*[wire.publish(V5, "a/1", f"{i}", 1, pid=100 + i) for i in range(100)])
    b.nothing()
    before = d.syncs()
    d.go()
    b.expect(PUBACK)
    for i in range(100):
        b.expect(PUBACK, pid=100 + i)
    assert d.syncs() - before <= 2


def test_one_sync_per_lone_message(slow, join):
    broker, d = slow
    b = join(broker, "b")
    b.publish("a/1", "warm", qos=1)
    before = d.syncs()
    for i in range(50):
        b.publish("a/1", f"{i}", qos=1)
    assert d.syncs() - before == 50


def test_sync_interval(lasting, join, tricks):
    """persistence_sync_interval: at least so many milliseconds between two syncs."""
    d = tricks()
    broker = lasting("persistence_sync_interval 300", env=d.env)
    a = join(broker, "a")
    a.subscribe(("t", 1))
    b = join(broker, "b")
    before, start = d.syncs(), time.monotonic()
    for i in range(5):
        b.publish("t", f"{i}", qos=1)
    assert time.monotonic() - start >= 4 * 0.3      # can only be longer on a slow machine
    assert d.syncs() - before <= 6


# ---- the helper ----

def children(broker):
    with open(f"/proc/{broker.pid}/task/{broker.pid}/children") as f:
        return [int(n) for n in f.read().split()]


def test_helper_is_replaced(slow, join):
    """Nothing is acknowledged for which no sync was seen, and all is once there is a new helper."""
    broker, d = slow
    b = hold(broker, d, join)
    old = children(broker)
    assert len(old) == 1
    os.kill(old[0], signal.SIGKILL)
    b.nothing()
    wait_for(lambda: children(broker) not in ([], old), "new helper")
    b.nothing()
    d.go()
    b.expect(PUBACK, timeout=20)
    b = join(broker, "b")
    wait_for(lambda: b.publish("a/2", "y", qos=1).reason == 0, "acknowledgement", 20)
    kill(broker)
    a = join(broker, "a", present=True)
    assert eventually(a, [("a/2", "y")]) == [("a/first", "x"), ("a/2", "y")]


# ---- bad ----

TROUBLE = [(("pwrite", "pwritev"), errno.ENOSPC), (("pwrite", "pwritev"), errno.EIO),
           (("fdatasync", "fsync"), errno.EIO), (("pwrite", "pwritev", "fallocate"), errno.EROFS)]


def errors(broker, after):
    return [line for line in broker.log().splitlines()[after:] if "Error:" in line]


@pytest.mark.parametrize("calls,error", TROUBLE, ids=["full", "EIO-write", "EIO-sync", "read-only"])
def test_trouble(slow, connect, dial, join, calls, error):
    broker, d = slow
    old = join(broker, "old", V311)
    b, told = join(broker, "b"), join(broker, "told")
    c, e = connect(broker=broker), connect(broker=broker, version=V5)
    c.subscribe(("clean", 2))
    e.subscribe(("$share/passing/job", 1))
    join(broker, "member").subscribe(("$share/lasting/work", 1))
    join(broker, "known").disconnect()
    b.publish("a/0", "before", qos=1)
    after = broker.mark()
    for call in calls:
        d.fail(call, error)
    # The first one finds it out. It is not acknowledged, now or refused.
    b.publish("a/1", "first", qos=1, pid=100, flow=False)
    broker.wait_log("Error: Journal", after=after)
    let_pass(time.monotonic(), PATIENCE_S + 0.2)
    b.nothing()
    # 5.0 is told. (Who waits for an acknowledgement already gets what comes behind it later.)
    for qos, pid in (1, 101), (2, 102):
        told.publish("a/1", "refused", qos=qos, pid=pid, flow=False)
        p = told.expect(PUBACK if qos == 1 else PUBREC, pid=pid)
        assert p.reason == QUOTA
    told.publish("r", "refused", qos=1, pid=103, retain=True, flow=False)
    assert told.expect(PUBACK, pid=103).reason == QUOTA
    told.publish("work", "refused", qos=1, pid=104, flow=False)
    assert told.expect(PUBACK, pid=104).reason == QUOTA
    assert told.subscribe(("t", 1), check=False).reasons == [QUOTA]
    for name in "new", "known":
        fresh = dial(broker, version=V5)
        assert fresh.connect(name, False, reason=None, properties=FOREVER).reason == UNAVAILABLE
    # 3.1.1 has few words: it tries again.
    assert old.subscribe(("t", 1), check=False).reasons == [0x80]
    old.send(wire.publish(V311, "a/1", "closed", 1, pid=1))
    old.expect_closed()
    fresh = dial(broker, version=V311)
    assert fresh.connect("new", False, reason=None).reason == 3
    # QoS 0, and those who leave nothing, go on.
    for qos in 0, 1, 2:
        e.publish("clean", "x", qos=qos)
        c.expect_publish("clean", "x", qos=qos)
    assert c.publish("job", "x", qos=1)
    e.expect_publish("job", "x", qos=1)
    assert len(errors(broker, after)) == 1, errors(broker, after)
    assert os.strerror(error) in errors(broker, after)[0]
    # By itself.
    after = broker.mark()
    d.well()
    broker.wait_log("the disk works again", after=after, timeout=40)
    b.expect(PUBACK, pid=100)
    assert b.publish("a/2", "after", qos=1).reason == 0
    assert not errors(broker, after)
    kill(broker)
    join(broker, "known", present=True)
    a = join(broker, "a", present=True)
    found = eventually(a, [("a/2", "after")])
    assert found == [("a/0", "before"), ("a/1", "first"), ("a/2", "after")]
    a.subscribe("r")
    a.nothing()


@pytest.mark.parametrize("calls,error", TROUBLE, ids=["full", "EIO-write", "EIO-sync", "read-only"])
def test_killed_in_trouble(slow, join, calls, error):
    """What was acknowledged before is there; what was not may be, once."""
    broker, d = slow
    b = join(broker, "b")
    for i in range(10):
        b.publish("a/0", f"{i}", qos=2)
    after = broker.mark()
    for call in calls:
        d.fail(call, error)
    b.publish("a/0", "10", qos=2, pid=500, flow=False)
    broker.wait_log("Error: Journal", after=after)
    broker.kill()
    d.well()
    broker.start()
    b = join(broker, "b", present=True)
    b.publish("a/0", "10", qos=2, pid=500, dup=True, flow=False)
    b.expect(PUBREC, pid=500)
    b.pubrel(500)
    a = join(broker, "a", present=True)
    wanted = [("a/0", f"{i}") for i in range(11)]
    assert eventually(a, wanted) == wanted


def test_stop_in_trouble(slow, join):
    """The end does not hang, and tells what is lost."""
    broker, d = slow
    b = join(broker, "b")
    for call in "pwrite", "pwritev":
        d.fail(call, errno.EIO)
    b.publish("a/1", "x", qos=1, flow=False)
    broker.wait_log("Error: Journal")
    after = broker.mark()
    broker.signal(signal.SIGTERM)
    broker.wait()
    assert errors(broker, after) and "could not be" in errors(broker, after)[0]
    d.well()
    broker.start()


def test_folder_is_removed(slow, join):
    """No name leads to the journal any more: what is acknowledged from then on is there at the next
    start, or nothing is acknowledged."""
    broker, d = slow
    b = join(broker, "b")
    b.publish("r/0", "before", qos=1, retain=True)
    shutil.rmtree(journal_of(broker))
    acked = []
    for i in range(20):
        b.send(publish(V5, f"r/{i}", "x", qos=1, retain=True, pid=100 + i))
    let_pass(time.monotonic(), PATIENCE_S + 0.2)
    b.ping()
    acked = [f"r/{p.pid - 100}" for p in b.inbox if p.type == PUBACK and p.reason < 0x80]
    kill(broker)
    looker = join(broker, "looker")
    looker.subscribe("r/#")
    looker.ping()
    assert set(acked) <= {p.topic for p in looker.inbox}


# ---- a real disk that is full ----

@pytest.fixture
def small(lasting, join):
    """A broker with its journal on a file system of 24 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    broker = lasting("max_queued_messages 0", start=False)
    folder = journal_of(broker)
    os.mkdir(folder)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=777", "none", folder], capture_output=True)
    if done.returncode:
        shutil.rmtree(folder)
        pytest.skip("this machine does not let us mount")
    try:
        yield broker
    finally:
        if broker.process:
            broker.stop()
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    """Takes all the room that is left."""
    with open(os.path.join(folder, "filler"), "ab", buffering=0) as f:
        for size in 1 << 20, 4096:
            try:
                while True:
                    f.write(bytes(size))
            except OSError as e:
                assert e.errno == errno.ENOSPC


def test_full_disk(small, connect, join):
    """Messages until no more fit; each that was acknowledged is there after a kill."""
    broker = small
    broker.start()
    a = join(broker, "a")
    a.subscribe(("t", 1))
    a.disconnect()
    b, c, clean = join(broker, "b"), join(broker, "c"), connect(broker=broker)
    clean.subscribe("t")
    fill(journal_of(broker))
    block = "x" * 100000
    sent = 0
    while acknowledged_or_trouble(broker, b, sent, block):
        sent += 1
        clean.expect_publish("t")
        assert sent < 1000
    let_pass(time.monotonic(), PATIENCE_S + 0.2)
    c.publish("t", "refused", qos=1, pid=1, flow=False)
    assert c.expect(PUBACK, pid=1).reason == QUOTA
    c.publish("t", "zero")
    clean.expect_publish("t")       # the one that is not acknowledged
    clean.expect_publish("t", "zero")
    after = broker.mark()
    os.unlink(os.path.join(journal_of(broker), "filler"))
    broker.wait_log("the disk works again", after=after, timeout=40)
    b.expect(PUBACK, pid=sent + 1)
    assert b.publish("t", "last", qos=1, pid=sent + 2).reason == 0
    kill(broker)
    a = join(broker, "a", present=True)
    found = [text.split()[0] for _, text in eventually_last(a, "last")]
    assert found == [str(i) for i in range(sent + 1)] + ["last"]


def acknowledged_or_trouble(broker, client, number, block):
    """Publishes a message to "t": whether the PUBACK came before the log told of trouble."""
    client.publish("t", f"{number} {block}", qos=1, pid=number + 1, flow=False)
    wait_for(lambda: has_bytes(client) or "Error: Journal" in broker.log(), "PUBACK")
    if not has_bytes(client):
        return False
    client.expect(PUBACK, pid=number + 1, reason=0)
    return True


def eventually_last(client, text):
    found = []
    while ("t", text) not in found:
        found += received(client)
    return found


def test_start_on_a_full_disk(small, join):
    """What is there is served; nothing is promised that does not fit."""
    broker = small
    broker.start()
    a = join(broker, "a")
    a.subscribe(("t", 1))
    a.publish("t", "kept", qos=1)
    a.close()
    broker.kill()
    fill(journal_of(broker))
    broker.start()
    a = join(broker, "a", present=True)
    assert eventually(a, [("t", "kept")]) == [("t", "kept")]


def test_start_on_a_read_only_disk(small, connect, join):
    """The journal can be read, so the broker starts with it."""
    broker = small
    broker.start()
    a = join(broker, "a")
    a.subscribe(("t", 1))
    a.publish("t", "kept", qos=1)
    a.close()
    broker.kill()
    mount = ["mount", "-o", "remount,ro", journal_of(broker)]
    wait_for(lambda: subprocess.run(mount, capture_output=True).returncode == 0, "read-only disk")
    broker.start()
    a = join(broker, "a", present=True)
    assert ("t", "kept") in received(a)
    let_pass(time.monotonic(), PATIENCE_S + 0.2)
    b = connect(broker=broker, version=V5)
    assert b.publish("t", "x", qos=1).reason == QUOTA
    after = broker.mark()
    subprocess.run(["mount", "-o", "remount,rw", journal_of(broker)], check=True)
    broker.wait_log("the disk works again", after=after, timeout=40)
    assert b.publish("t", "y", qos=1).reason == 0
