"""What waits for the disk, and what does not: with each sync held up for as long as the test likes."""

import pytest

import disk
import wire
from wire import *


@pytest.fixture
def held():
    """A broker with a journal, and its disk."""
    tricks = disk.Disk()
    brokers = []

    def start(*lines):
        broker = wire.Broker("persistence true", "persistence_location {dir}/j/", *lines, env=tricks.env)
        brokers.append(broker)
        return broker.start(), tricks
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
