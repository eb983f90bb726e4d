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

    def __init__(self, address, before=None, pair=None):
        """before: a Peer whose session is resumed. pair: files of a certificate and its key."""
        self.sock = socket.create_connection(address, timeout=10)
        self.came, self.goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.context = before.context if before else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self.context.maximum_version = ssl.TLSVersion.TLSv1_2
        if pair:
            self.context.load_cert_chain(*pair)
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
    """peer(broker, before=, pair=): a Peer that has not said anything yet."""
    peers = []

    def create(broker, **options):
        peers.append(Peer(broker.address, **options))
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


# Two authorities of one name

CA_CONF = """[ca]
default_ca = this
[this]
database = {dir}/index.txt
new_certs_dir = {dir}
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
x509_extensions = authority
[any]
commonName = supplied
[authority]
basicConstraints = critical,CA:TRUE
"""


def openssl(*words):
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def authority(folder, name, start, end):
    """A CA whose name is always the same; returns what it signs for "pupil": certificate and key."""
    ca, conf = folder / name, folder / f"{name}.cnf"
    request = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    (folder / "index.txt").touch()
    conf.write_text(CA_CONF.format(dir=folder))
    openssl(*request, "-subj", "/CN=school", "-keyout", f"{ca}.key", "-out", f"{ca}.csr")
    openssl("ca", "-config", str(conf), "-batch", "-notext", "-selfsign", "-keyfile", f"{ca}.key",
            "-startdate", start, "-enddate", end, "-in", f"{ca}.csr", "-out", f"{ca}.pem")
    openssl(*request, "-subj", "/CN=pupil", "-keyout", f"{ca}.pupil.key", "-out", f"{ca}.pupil.csr")
    openssl("x509", "-req", "-in", f"{ca}.pupil.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-days", "3650",
            "-set_serial", "1", "-out", f"{ca}.pupil.pem")
    return f"{ca}.pupil.pem", f"{ca}.pupil.key"


def test_expired_authority_of_the_same_name(tls_broker, peer, tmp_path):
    """A CA was renewed with a new key and the old certificate still stands in cafile: what the old key
    signed is refused, although a valid CA has its issuer's name."""
    old = authority(tmp_path, "old", "20200101000000Z", "20210101000000Z")
    new = authority(tmp_path, "new", "20200101000000Z", "20991231000000Z")
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "new.pem").read_text() + (tmp_path / "old.pem").read_text())
    broker = tls_broker(f"cafile {both}", "require_certificate true")
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        peer(broker, pair=old).handshake()
    broker.wait_log('handshake with .* failed: refused by us, certificate "pupil": it was issued by "school"')
    peer(broker, pair=new).handshake().connect("taken")
