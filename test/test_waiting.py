"""What waits for the disk, and what does not: with each sync held up for as long as the test likes."""

import os

import pytest

import disk
import wire
from test_mosqdb import client6, config, header, message, retained, subscription, written
from wire import *


@pytest.fixture
def held():
    """A broker with a journal, and its disk."""
    disk.skip_if_static()
    tricks = disk.Disk()
    brokers = []

    def start(*lines, start=True):
        broker = wire.Broker("persistence true", "persistence_location {dir}/j/", *lines, env=tricks.env)
        brokers.append(broker)
        return (broker.start() if start else broker), tricks
    yield start
    tricks.well()
    for broker in brokers:
        broker.cleanup()
    tricks.cleanup()


def dial(broker, client_id, clean=True, version=V311, **fields):
    client = wire.Client(broker.address, version)
    client.connect(client_id, clean=clean, **fields)
    return client


def test_answers_that_wait_are_bounded(held):
    """While one answer waits, a client cannot make the broker keep any number of them."""
    broker, disk = held("memory_limit 3000000")
    sub = dial(broker, "sub", clean=False)
    sub.subscribe("kept", qos=1)
    sub.disconnect()
    pub = dial(broker, "pub")
    disk.hold()
    pub.send(wire.publish(V311, "kept", "x", 1, pid=1))
    n = 60000
    lot = b"".join(wire.publish(V311, "no", "", 1, pid=i) for i in range(2, n))
    pub.sock.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += pub.sock.send((lot[sent % len(lot):] or lot)[:65536])
    other = dial(broker, "other")
    other.ping()
    disk.go()
    for i in range(1, 5000):
        assert pub.await_packet(PUBACK).pid == i


def test_killed_right_after_the_import(held):
    """What Mosquitto left is there at the second start, too, if the first one wrote anything at all."""
    broker, disk = held(start=False)
    folder = broker.path("j")
    os.mkdir(folder)
    os.chmod(folder, 0o777)
    written(folder, header(6), config(), message(1, b"kept", b"1", retain=1), retained(1), client6(b"old"),
            subscription(b"old", b"t/#"))
    disk.slow(200)      # the snapshot takes several syncs, the answer one
    broker.start()
    dial(broker, "other", clean=False)  # waits until this is on the disk
    broker.kill()
    disk.well()
    broker.start()
    assert dial(broker, "old", clean=False).connack.session_present
    client = dial(broker, "new")
    client.subscribe("kept")
    client.expect_publish("kept", "1", retain=True)


def test_what_could_not_be_recorded_is_not_promised(held):
    """A journal that is full while the disk stands still: no answer, and the client comes again."""
    broker, disk = held()
    lasting = dial(broker, "lasting", clean=False)
    flood = dial(broker, "flood", version=V5)
    disk.hold()
    for size, n in (1 << 20, 30), (1 << 16, 30), (1 << 12, 30), (1 << 8, 30), (1, 30):
        for i in range(n):
            flood.send(wire.publish(V5, f"r/{size}/{i}", bytes(size), retain=True))
    flood.ping()
    lasting.send(wire.subscribe(V311, 1, [("wanted", 1)]))
    lasting.expect_closed()
    broker.wait_log("lasting gets no answer")
    disk.go()
    lasting = None
    while not lasting:      # as long as the journal is full; the test has its limit
        try:
            lasting = dial(broker, "lasting", clean=False)
        except wire.Closed:
            pass
    lasting.subscribe("wanted", qos=1)
