"""One takes all that he can get, or thousands come at once: the others have their turn, and nobody is taken for dead."""

import select
import socket
import ssl
import threading
import time

import pytest

from test_loop import raise_own_limit
from test_strangers import dial_raw, goes_on
from tls import ANYBODY, listener, trusting
from wire import CONNACK, V311, connect as connect_packet, pingreq, publish, wait_for


@pytest.fixture
def living(connect):
    """living(broker, n): n clients with a keep alive of two seconds, who ping twice in a second. All of them have to
    be there at the end."""
    clients, threads, over = [], [], threading.Event()

    def live(mine):
        while not over.wait(0.5):
            for c in mine:
                c.sock.sendall(pingreq())

    def create(broker, n, **options):
        new = [connect(broker=broker, keepalive=2, timeout=30, **options) for _ in range(n)]
        clients.extend(new)
        threads.append(threading.Thread(target=live, args=(new,)))
        threads[-1].start()
        return new

    yield create
    over.set()
    for t in threads:
        t.join()
    for c in clients:
        c.disconnect()


class Pushing:
    """Somebody who publishes at full speed until the end of the block."""

    def __init__(self, client, data):
        self.client, self.data, self.sent, self.over = client, data, 0, False
        client.sock.settimeout(30)
        self.thread = threading.Thread(target=self.push)

    def push(self):
        while not self.over:
            self.client.sock.sendall(self.data)
            self.sent += len(self.data)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over = True
        self.thread.join()


def test_publisher_at_full_speed(new_broker, connect, living):
    """To a hundred subscribers, most of whom take nothing."""
    broker = new_broker("sys_interval 0", "connection_messages false")
    living(broker, 20)
    for _ in range(100):
        connect(broker=broker, keepalive=0).subscribe("flood")
    inside = connect(broker=broker, timeout=30)
    inside.subscribe("own")
    with Pushing(connect(broker=broker, keepalive=0), publish(V311, "flood", bytes(100)) * 1000) as p:
        wait_for(lambda: p.sent > 1_000_000, "flood")
        for _ in range(200):
            goes_on(inside)
        before = time.monotonic()
        while time.monotonic() < before + 4:        # longer than the keep alive
            goes_on(inside)
    assert "exceeded timeout" not in broker.log()


@pytest.mark.limit(120)
def test_mass_reconnect(new_broker, connect, living):
    """Five thousand at once: each is let in, without a second try."""
    broker = new_broker("sys_interval 0", "connection_messages false")
    raise_own_limit(5500)
    living(broker, 20)
    sockets = []
    try:
        for i in range(5000):
            sockets.append(socket.create_connection(broker.address, timeout=60))
            sockets[-1].sendall(connect_packet(V311, f"mass{i}", keepalive=0))
        for s in sockets:
            assert s.recv(4) == bytes([CONNACK << 4, 2, 0, 0])
        connect(broker=broker).ping()
    finally:
        for s in sockets:
            s.close()
    assert "exceeded timeout" not in broker.log() and "Warning" not in broker.log()


@pytest.mark.limit(180)
def test_mass_reconnect_with_tls(new_broker, connect, living, pki):
    """Five hundred handshakes at once: each is let in, and who is there goes on."""
    broker = new_broker(config=listener(pki.server()) + ANYBODY + "sys_interval 0\nconnection_messages false\n"
                        "max_connecting 1000\nconnect_timeout 60\n")
    living(broker, 10, context=trusting(pki.ca))
    context = trusting(pki.ca)
    waiting = {}
    sockets = [dial_raw(broker) for _ in range(500)]
    poll = select.poll()
    for i, s in enumerate(sockets):
        waiting[s.fileno()] = i
        poll.register(s, select.POLLOUT)
    try:
        while waiting:
            for fd, _ in poll.poll(20_000):
                i = waiting[fd]
                if not isinstance(sockets[i], ssl.SSLSocket):       # now it is connected
                    sockets[i] = context.wrap_socket(sockets[i], server_hostname="localhost",
                                                     do_handshake_on_connect=False)
                try:
                    sockets[i].do_handshake()
                except ssl.SSLWantReadError:
                    poll.modify(fd, select.POLLIN)
                    continue
                sockets[i].setblocking(True)
                sockets[i].sendall(connect_packet(V311, f"tls{fd}", keepalive=0))
                poll.unregister(fd)
                del waiting[fd]
        for s in sockets:
            s.settimeout(20)
            assert s.recv(4) == bytes([CONNACK << 4, 2, 0, 0])
    finally:
        for s in sockets:
            s.close()
    assert "exceeded timeout" not in broker.log()


@pytest.mark.limit(120)
def test_retained_flood(new_broker, connect, living):
    """Ten subscribers get twenty thousand retained messages each."""
    broker = new_broker("sys_interval 0", "connection_messages false")
    living(broker, 10)
    pub = connect(broker=broker, timeout=30)
    pub.send(*(publish(V311, f"k/{i}", bytes(500), retain=True) for i in range(20_000)))
    pub.ping()
    pub.subscribe("own")
    subs = [connect(broker=broker, timeout=30) for _ in range(10)]
    for s in subs:
        s.subscribe("#")
        goes_on(pub)
    for s in subs:
        n = 0
        while n < 20_000:
            p = s.receive()
            n += p.retain
    assert "exceeded timeout" not in broker.log()
