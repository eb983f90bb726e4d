"""Connections that never log in: they are few, keep little and do not last, and who is logged in notices nothing."""

import contextlib
import os
import resource
import select
import socket
import time

import pytest

from test_loop import raise_own_limit
from test_memory import resident
from tls import ANYBODY, exchange, listener, trusting
from wire import V311, connect as connect_packet, password_line, varint, wait_for

BODY = connect_packet(V311, "late", keepalive=0)


def dial_raw(broker):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(broker.address)
    return s


def until_connected(s):
    p = select.poll()
    p.register(s, select.POLLOUT)
    p.poll(20_000)


@pytest.fixture
def flood():
    """flood(broker, n, send=): so many connections, without waiting for any of them; closed at the end."""
    sockets = []

    def create(broker, n, send=b""):
        raise_own_limit(len(sockets) + n + 500)
        new = [dial_raw(broker) for _ in range(n)]
        sockets.extend(new)
        for s in new if send else []:
            until_connected(s)
            with contextlib.suppress(OSError):
                s.send(send)
        return new

    yield create
    for s in sockets:
        s.close()


def goes_on(client):
    """An exchange of one who is connected."""
    client.publish("own", "x", qos=1)
    client.expect_publish("own", "x")


def descriptors(broker):
    return len(os.listdir(f"/proc/{broker.pid}/fd"))


def is_closed(s):
    try:
        return s.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("send", [b"", BODY[:5]], ids=["half open", "half a CONNECT"])
def test_the_oldest_goes(new_broker, connect, flood, send):
    """Ever more connections that say nothing, or not enough: never more than max_connecting are kept, and who
    comes then and says all is let in."""
    broker = new_broker("max_connecting 50", "sys_interval 0")
    inside = connect("inside", broker=broker)
    inside.subscribe("own")
    first = flood(broker, 50, send)
    for s in first:
        until_connected(s)
    connect("after", broker=broker).ping()
    for _ in range(10):
        flood(broker, 50, send)
        goes_on(inside)
        connect(broker=broker).ping()
    wait_for(lambda: all(is_closed(s) for s in first), "the end of the oldest")
    assert descriptors(broker) < 50 + 64 + 40
    assert broker.log().count("connections have not logged in (max_connecting)") == 1
    broker.wait_log(r"Warning: 50 connections have not logged in \(max_connecting\); for each one more the oldest of "
                    r"them is closed\.")
    broker.wait_log(r"Client <unknown> \[\S+\] disconnected: too many connections that have not logged in\.")


@pytest.mark.limit(120)
def test_ten_thousand_connections(new_broker, connect, flood):
    """As fast as they can be made: who is connected goes on, and others come in between."""
    broker = new_broker("sys_interval 0", "connection_messages false")
    inside = connect("inside", broker=broker, timeout=20)
    inside.subscribe("own")
    for i in range(20):
        flood(broker, 500, BODY[:5] if i % 2 else b"")
        goes_on(inside)
        connect(f"guest{i}", broker=broker, timeout=20).ping()
    assert descriptors(broker) < 1300
    connect("last", broker=broker).ping()


def test_byte_by_byte(new_broker, connect, flood):
    """One byte now and then does not move the deadline."""
    broker = new_broker("connect_timeout 1", "sys_interval 0")
    inside = connect("inside", broker=broker)
    inside.subscribe("own")
    slow = flood(broker, 100)
    packet = connect_packet(V311, "x" * 1000)
    for byte in packet:
        goes_on(inside)
        for s in slow:
            with contextlib.suppress(OSError):
                s.send(bytes([byte]))
        if all(is_closed(s) for s in slow):
            break
        time.sleep(0.01)    # so that there are bytes left when the second is over
    assert all(is_closed(s) for s in slow)
    broker.wait_log("no CONNECT within connect_timeout")


@pytest.mark.parametrize("announced, refused", [(256_000_000, True), (1_900_000, False)])
def test_large_connects(new_broker, connect, flood, announced, refused):
    """A huge CONNECT is refused at its first bytes; the beginnings of large ones get a small part of the memory."""
    broker = new_broker("sys_interval 0", "memory_limit 8000000")
    inside = connect("inside", broker=broker)
    inside.subscribe("own")
    before = resident(broker)
    sockets = flood(broker, 200, b"\x10" + varint(announced) + BODY[2:12] + bytes(90_000))
    for _ in range(20):
        goes_on(inside)
    if refused:
        wait_for(lambda: all(is_closed(s) for s in sockets), "the end of all")
        broker.wait_log("packet larger than max_packet_size")
    else:
        broker.wait_log("the connections that have not logged in hold too much input, and it most")
    after = resident(broker)
    assert after is None or after - before < 2_500_000
    connect("late", broker=broker).ping()


def test_logins_that_wait(new_broker, connect, flood):
    """CONNECTs whose passwords take long to check: they are kept within the same budget."""
    broker = new_broker(config="listener {port} 127.0.0.1\npassword_file {dir}/users\nsys_interval 0\n"
                               "memory_limit 8000000\n", start=False)
    with open(broker.path("users"), "w") as f:
        f.write(password_line("inside", "x") + password_line("u", "x").replace("$101$", "$5000000$"))
    broker.start()
    inside = connect("inside", broker=broker, username="inside", password="x")
    inside.subscribe("own")
    flood(broker, 100, connect_packet(V311, "y", username="u", password="z" * 30_000))
    broker.wait_log("the connections that have not logged in hold too much input, and it most")
    for _ in range(50):
        goes_on(inside)


def test_half_open_handshakes(new_broker, connect, flood, pki):
    """The same with TLS: handshakes that begin and stop."""
    broker = new_broker(config=listener(pki.server()) + ANYBODY + "max_connecting 100\nsys_interval 0\n")
    inside = exchange(connect, broker, trusting(pki.ca))
    inside.subscribe("own")
    for _ in range(10):
        flood(broker, 100, b"\x16\x03\x01\x3f\x00" + bytes(10_000))
        goes_on(inside)
    exchange(connect, broker, trusting(pki.ca))
    assert descriptors(broker) < 100 + 64 + 40


def test_a_quarter_of_the_descriptors(new_broker, connect, flood):
    """However few descriptors there are, strangers do not take them all."""
    broker = new_broker("sys_interval 0", "user root")
    inside = connect("inside", broker=broker)
    inside.subscribe("own")
    resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (200, 200))
    for _ in range(5):
        flood(broker, 100)
        goes_on(inside)
        connect(broker=broker).ping()
    assert "No more connections can be accepted" not in broker.log()
    assert descriptors(broker) < 150
