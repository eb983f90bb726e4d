"""What the tests of persistence share: test_persist*.py.

    from durable import join, lasting, tricks    the fixtures: a client with a lasting session, a
                                                 broker that keeps what lasts, a disk to play with

The rest ends a broker in one of several ways, and reads what is due to a client.
"""

import signal
import subprocess
import time

import pytest

import disk
import wire
from wire import V5, V31, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP

CONFIG = wire.DEFAULT_CONFIG + "log_type all\npersistence true\npersistence_location {dir}/journal\n"
FOREVER = {"session_expiry_interval": 0xFFFFFFFF}
MIDGE = wire.command()


def journal_of(broker):
    return broker.path("journal")


@pytest.fixture
def lasting(new_broker):
    """lasting(*lines, env=): a broker that keeps what lasts."""
    def create(*lines, config=CONFIG, **rest):
        return new_broker(*lines, config=config, **rest)
    return create


def snapshot(broker):
    after = broker.mark()
    broker.signal(signal.SIGUSR1)
    broker.wait_log("new snapshot", after=after)


def kill(broker):
    broker.kill()
    broker.start()


def stop(broker):
    broker.restart()


@pytest.fixture
def join(connect):
    """join(broker, client_id, version, present=): a client with a lasting session."""
    def create(broker, name, version=V5, present=None, properties=FOREVER, **rest):
        client = connect(name, broker, version=version, clean=False,
                         properties=properties if version == V5 else None, **rest)
        if present is not None and version != V31:
            assert client.connack.session_present == present
        return client
    return create


@pytest.fixture
def tricks():
    """tricks(): a Disk; see disk.py."""
    disk.skip_if_static()
    made = []

    def create():
        made.append(disk.Disk())
        return made[-1]
    yield create
    for d in made:
        d.cleanup()


def received(client):
    """All messages that are due, each seen through to its end: (topic, payload) in order."""
    found, quiet, open_pids = [], 0, set()
    while quiet < 2 or open_pids:
        quiet += 1
        client.send(wire.pingreq())
        while True:
            p = client.receive()
            if p.type == wire.PINGRESP:
                break
            quiet = 0
            if p.type == PUBREL:
                client.ack(PUBCOMP, p.pid)
                open_pids.discard(p.pid)
                continue
            assert p.type == PUBLISH, p
            found.append((p.topic, p.payload.decode()))
            if p.qos == 2:
                open_pids.add(p.pid)
            if p.qos:
                client.ack(PUBACK if p.qos == 1 else PUBREC, p.pid)
    return found


def eventually(client, wanted):
    """The messages that come, until those wanted are among them: deliveries of QoS 2 wait for the
    disk, and no PINGRESP waits for that."""
    found = []
    deadline = time.monotonic() + client.timeout
    while not set(wanted) <= set(found):
        assert time.monotonic() < deadline, f"wanted {wanted}, got {found}"
        found += received(client)
    return found + received(client)


def store(*args):
    return subprocess.run([*MIDGE, "store", *args], capture_output=True, text=True, errors="replace")
