"""TLS peers that mean no good, or end in the middle of things: nothing hangs, nothing leaks."""

import signal
import socket
import ssl
import struct
import subprocess

import pytest

from wire import CONNACK, V311, connect as connect_packet, decode, publish

APPLICATION, VERSION = 23, b"\x03\x03"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The files of a certificate for itself, and of its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-subj", "/CN=localhost", "-days", "3650", "-keyout", key, "-out", cert],
                   check=True, capture_output=True)
    return cert, key


class Peer:
    """A TLS client whose records a test can cut, join and damage before they leave."""

    def __init__(self, address, before=None):
        """before: a Peer whose session is resumed."""
        self.sock = socket.create_connection(address, timeout=10)
        self.came, self.goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.context = before.context if before else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self.context.maximum_version = ssl.TLSVersion.TLSv1_2
        session = before.tls.session if before else None
        self.tls = self.context.wrap_bio(self.came, self.goes, session=session)

    def until(self, call, *args, send=True):
        """Repeats the call and moves bytes until it needs no more; without send, what it wants
        to say at last is left in goes."""
        while True:
            try:
                result = call(*args)
                if send:
                    self.sock.sendall(self.goes.read())
                return result
            except ssl.SSLWantReadError:
                self.sock.sendall(self.goes.read())
                data = self.sock.recv(65536)
                assert data, "the broker has closed the connection"
                self.came.write(data)

    def handshake(self):
        self.until(self.tls.do_handshake)
        return self

    def records(self, *datas):
        """One record with each."""
        for data in datas:
            self.tls.write(data)
        return self.goes.read()

    def connect(self, client_id):
        self.sock.sendall(self.records(connect_packet(V311, client_id, True, keepalive=0)))
        assert decode(V311, self.until(self.tls.read, 4)).type == CONNACK

    def expect_end(self):
        """The broker closes the connection; what it says before is nobody's concern."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass

    def close(self):
        self.sock.close()


@pytest.fixture
def peer():
    """peer(broker, before=): a Peer that has not said anything yet."""
    peers = []

    def create(broker, before=None):
        peers.append(Peer(broker.address, before))
        return peers[-1]

    yield create
    for one in peers:
        one.close()


@pytest.fixture
def tls_broker(new_broker, certificate):
    """tls_broker(*lines): a broker with TLS at {port} and without at {port2}."""
    cert, key = certificate

    def create(*lines):
        return new_broker(f"certfile {cert}", f"keyfile {key}", *lines, "listener {port2} 127.0.0.1",
                          "log_type all", "sys_interval 0")
    return create


def plain(broker):
    return "127.0.0.1", broker.ports["port2"]


def damaged(size=100):
    """A record that no key made."""
    return struct.pack(">B2sH", APPLICATION, VERSION, size) + bytes(size)


def test_damage_behind_data(tls_broker, peer, connect, topic):
    """What came before a damaged record counts, and then the connection ends: at once, not only
    when something more comes."""
    broker = tls_broker()
    sub = connect(address=plain(broker))
    sub.subscribe(topic)
    bad = peer(broker).handshake()
    bad.connect("bad")
    bad.sock.sendall(bad.records(publish(V311, topic, b"before")) + damaged())
    sub.expect_publish(topic, b"before")
    bad.expect_end()
    broker.wait_log("bad.*TLS error.*damaged")


def test_damage_before_much_more(tls_broker, peer, connect):
    """What follows a damaged record is thrown away, however much it is and whenever it comes."""
    broker = tls_broker()
    bad = peer(broker).handshake()
    bad.connect("bad")
    broker.signal(signal.SIGSTOP)
    bad.sock.sendall(bad.records(b"\xc0\0") + damaged() + bytes(62000))
    broker.signal(signal.SIGCONT)
    broker.wait_log("bad.*TLS error.*damaged")
    try:
        bad.sock.sendall(bytes(300000))
    except (BrokenPipeError, ConnectionResetError):
        pass
    bad.expect_end()
    connect(address=plain(broker)).ping()


def close_notify(peer):
    """The record that ends TLS, and what waits to leave before it."""
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.unwrap()
    return peer.goes.read()


def test_close_notify_behind_data(tls_broker, peer, connect, topic):
    """The end of TLS is the end, also if it comes with data and without the end of TCP."""
    broker = tls_broker()
    sub = connect(address=plain(broker))
    sub.subscribe(topic)
    one = peer(broker).handshake()
    one.connect("one")
    one.sock.sendall(one.records(publish(V311, topic, b"last")) + close_notify(one))
    sub.expect_publish(topic, b"last")
    one.expect_end()


def test_all_at_once_with_the_handshake(tls_broker, peer, connect, topic):
    """A resumed session whose last handshake message, data and end come together loses nothing."""
    broker = tls_broker()
    sub = connect(address=plain(broker))
    sub.subscribe(topic)
    first = peer(broker).handshake()
    first.connect("first")
    again = peer(broker, before=first)
    again.until(again.tls.do_handshake, send=False)
    assert again.tls.session_reused
    finished = again.goes.read()
    broker.signal(signal.SIGSTOP)
    again.sock.sendall(finished + again.records(connect_packet(V311, "again"), publish(V311, topic, b"short")))
    again.sock.shutdown(socket.SHUT_WR)
    broker.signal(signal.SIGCONT)
    sub.expect_publish(topic, b"short")


def test_too_late(tls_broker, peer):
    """A handshake that was given up for its time is not taken up again while the connection ends."""
    broker = tls_broker("connect_timeout 1")
    slow = peer(broker)
    with pytest.raises(ssl.SSLWantReadError):
        slow.tls.do_handshake()
    slow.sock.sendall(slow.goes.read())
    while not slow.goes.pending:
        slow.came.write(slow.sock.recv(65536))
        with pytest.raises(ssl.SSLWantReadError):
            slow.tls.do_handshake()
    broker.wait_log("TLS handshake with .* failed: the client did not complete it in time")
    assert slow.sock.recv(1) == b""
    slow.sock.sendall(slow.goes.read())
    slow.sock.shutdown(socket.SHUT_WR)
    slow.expect_end()
    broker.stop()
    assert "succeeded" not in broker.log()
