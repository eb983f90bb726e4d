"""What comes to a TLS port and is no handshake, or one that never ends, from one peer or from very many: each is
told in one line and let go, the memory comes back, and nobody who is connected notices."""

import contextlib
import random
import re
import socket
import ssl

import pytest

from test_tls import ByHand, SESSION, ANSWERS, client_hello, read_all
from tls import ANYBODY, connection, exchange, listener, mutual, refusal, trusting
from wire import connect as connect_packet, wait_for

RANDOM = random.Random(4711)

NOT_TLS = "refused by us: what came is not TLS"


@pytest.fixture
def broker(new_broker, pki):
    return new_broker(config=listener(pki.server()) + ANYBODY, args=["-v"])


@pytest.fixture
def inside(broker, pki, connect):
    """A client that is connected while all this happens, and after it still is."""
    client = exchange(connect, broker, trusting(pki.ca))
    yield client
    client.subscribe("still/here")
    client.publish("still/here", bytes(30_000))
    client.expect_publish("still/here", bytes(30_000))


def failures(broker, port):
    """The lines about handshakes with this port of a client."""
    return re.findall(rf"TLS handshake with 127\.0\.0\.1:{port} .*", broker.log())


def told(broker, what):
    """How many handshakes are said to have failed so. Ends the broker, as lines that are alike are at last
    only counted."""
    broker.stop()
    return told_of(broker, what)


def told_of(broker, what):
    """The same for a broker that has ended."""
    lines = re.findall(rf"TLS handshake with \S+ on port \d+ failed: {what}.*", broker.log())
    again = [re.search(r"\(repeated (\d+) times\)$", line) for line in lines]
    return sum(int(m.group(1)) if m else 1 for m in again)


def record(body, type=22, version=b"\x03\x01", length=None):
    return bytes([type]) + version + (len(body) if length is None else length).to_bytes(2, "big") + body


STRANGE = {
    "MQTT 3.1.1": (connect_packet(client_id="plain"), "refused by us: MQTT without TLS came to a TLS port; tell the "
                   r"client to use TLS \(mosquitto_sub --cafile\), or the port of a plain listener"),
    "MQTT 5": (connect_packet(5, "plain"), "refused by us: MQTT without TLS came to a TLS port"),
    "GET": (b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n", "refused by us: HTTP came to a port for MQTT over TLS"),
    "POST": (b"POST / HTTP/1.1\r\n\r\n", "refused by us: HTTP came to a port for MQTT over TLS"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", NOT_TLS),
    "zeros": (bytes(100), NOT_TLS),
    "SSL 2": (bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0") + bytes(16), NOT_TLS),
    "alert": (record(b"\x02\x28", type=21), NOT_TLS),
    "application data": (record(b"hello", type=23), NOT_TLS),
    "version 4": (record(b"\x01", version=b"\x04\x00"), NOT_TLS),
    "length 65535": (record(b"", length=65535), NOT_TLS),
    "length 16641": (record(b"\x01", length=16641), NOT_TLS),
    "Finished": (record(b"\x14\0\0\x0c" + bytes(12)), r"refused by us: the handshake is malformed"),
    "noise in a record": (record(RANDOM.randbytes(300)), "refused by us: "),
    "noise in a ClientHello": (record(b"\x01\0\x01\0" + RANDOM.randbytes(256)), "refused by us: "),
    "ClientHello, then text": (None, "refused by us: "),
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange(broker, inside, case):
    """It is refused as soon as it can be seen what it is, without waiting for more."""
    data, reason = STRANGE[case]
    if data is None:
        data = client_hello("-tls1_2") + b"GET / HTTP/1.1\r\n\r\n"
    with connection(broker) as s:
        port = s.getsockname()[1]
        s.sendall(data)
        read_all(s)     # until the broker hangs up
    assert re.match(reason, refusal(broker, port))
    assert len(failures(broker, port)) == 1


def test_tls_on_a_plain_port(new_broker, connect, pki):
    """The other way round."""
    broker = new_broker(args=["-v"])
    with connection(broker) as s:
        s.sendall(client_hello())
        assert read_all(s) == b""
        broker.wait_log(rf"Client \S+ \[127\.0\.0\.1:{s.getsockname()[1]}\] disconnected: protocol error\. Cause: the "
                        "client appears to be using TLS to connect to a non-TLS listener; tell it not to, or give the "
                        "listener certfile and keyfile")
    connect(broker=broker).ping()


def test_changed_hellos(broker, connect, pki):
    """Each byte of a ClientHello changed in turn, then silence: one line each, whatever it led to."""
    hello = client_hello("-tls1_2")
    inside = exchange(connect, broker, trusting(pki.ca))
    for at in range(len(hello)):
        with connection(broker) as s:
            s.sendall(hello[:at] + bytes([hello[at] ^ RANDOM.randrange(1, 256)]) + hello[at + 1:])
            s.shutdown(socket.SHUT_WR)
            read_all(s)
    inside.disconnect()
    assert told(broker, "") == len(hello)


def test_cut_hellos(broker, inside):
    """A ClientHello that ends at any place."""
    hello = client_hello("-tls1_2")
    for at in range(0, len(hello), 7):
        with connection(broker) as s:
            s.sendall(hello[:at])
            s.shutdown(socket.SHUT_WR)
            read_all(s)


def test_hello_in_tiny_records(broker, inside, pki):
    """A ClientHello may come in records of one byte each; a handshake that is nothing else may not last for ever."""
    hello = client_hello("-tls1_2")
    with connection(broker) as s:
        s.sendall(b"".join(record(hello[i:i + 1]) for i in range(5, len(hello))))
        assert s.recv(1) == b"\x16"


def test_empty_records(broker, inside):
    """Records with nothing in them, without end."""
    with connection(broker) as s:
        with contextlib.suppress(ConnectionError):
            s.sendall(record(b"") * 100_000)
            s.shutdown(socket.SHUT_WR)
        read_all(s)
        refusal(broker, s.getsockname()[1])


# A handshake that is tampered with

class Tampered(ByHand):
    """A client whose records in the handshake are changed: change(record) gives what is sent instead."""

    def __init__(self, broker, context, change):
        super().__init__(broker, context)
        self.change = change

    def send(self, step=0):
        data = self.outgoing.read()
        while data:
            size = 5 + int.from_bytes(data[3:5], "big")
            self.sock.sendall(self.change(data[:size]))
            data = data[size:]


CERTIFICATE, CERTIFICATE_VERIFY = 11, 15


def is_message(r, type):
    return r[0] == 22 and r[5] == type and int.from_bytes(r[6:9], "big") == len(r) - 9


def spoil(r):
    return r[:-1] + bytes([r[-1] ^ 1])


def encrypted():
    """A predicate: the record is behind ChangeCipherSpec."""
    seen = []

    def test(r):
        seen.append(r[0])
        return 20 in seen and r[0] == 22
    return test


def tampering(case):
    finished = encrypted()
    return {
        "signature": lambda r: spoil(r) if is_message(r, CERTIFICATE_VERIFY) else r,
        "no signature": lambda r: b"" if is_message(r, CERTIFICATE_VERIFY) else r,
        "no certificate message": lambda r: b"" if is_message(r, CERTIFICATE) else r,
        "Finished": lambda r: spoil(r) if finished(r) else r,
        "no ChangeCipherSpec": lambda r: b"" if r[0] == 20 else r,
    }[case]


@pytest.mark.parametrize("case, alert, reason", [
    ("signature", 51, 'refused by us, certificate "pupil": the client does not have the key of this certificate$'),
    ("no signature", None, "refused by us: the handshake is malformed"),
    ("no certificate message", None, "refused by us: "),
    ("Finished", None, "refused by us: the handshake was changed on its way, or the client's TLS is faulty$"),
    ("no ChangeCipherSpec", None, "refused by us: "),
])
def test_tampered(new_broker, connect, pki, case, alert, reason):
    """A certificate alone opens no door: its key must be there, and nobody in between."""
    broker = new_broker(config=mutual(pki.server()) + ANYBODY, args=["-v"])
    client = Tampered(broker, trusting(pki.ca, pki.client()), tampering(case))
    try:
        port = client.sock.getsockname()[1]
        with pytest.raises((ssl.SSLError, ConnectionError)) as seen:
            client.handshake()
    finally:
        client.close()
    why = refusal(broker, port)
    assert re.match(reason, why), why
    assert len(failures(broker, port)) == 1
    if alert:
        assert seen.value.reason == {51: "TLSV1_ALERT_DECRYPT_ERROR"}[alert]
    exchange(connect, broker, trusting(pki.ca, pki.client()))


@pytest.mark.parametrize("end", ["orderly", "reset"])
def test_client_hangs_up(broker, inside, pki, end):
    """The client goes away when it has seen our certificate: that is told, with what it often means."""
    with connection(broker) as s:
        port = s.getsockname()[1]
        s.sendall(client_hello("-tls1_2"))
        assert s.recv(65536 if end == "orderly" else 1)[0] == 22    # who has not read all resets the connection
    assert re.match(r"the client hung up in the middle of the handshake; often it does not trust our certificate "
                    r"\(--cafile\) or connects to a name that is not in it", refusal(broker, port))


# Silence

def stalled(broker, context, step):
    """A client that falls silent there."""
    client = ByHand(broker, context)
    if step == "nothing":
        return client
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    hello = client.outgoing.read()
    client.sock.sendall(hello[:{"in the head": 3, "in the hello": 40}.get(step, len(hello))])
    if step in ("in the head", "in the hello", "after the hello"):
        return client
    while not client.outgoing.pending:
        client.take()
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
    client.sock.sendall(client.outgoing.read()[:-20])
    return client


STEPS = ["nothing", "in the head", "in the hello", "after the hello", "before the end"]


def test_silence_at_each_step(new_broker, connect, pki):
    """However far a handshake has come: it has its time (here two seconds), then the peer is let go."""
    broker = new_broker("connect_timeout 2", config=listener(pki.server()) + ANYBODY, args=["-v"])
    context = trusting(pki.ca)
    inside = exchange(connect, broker, context)
    clients = [stalled(broker, context, step) for step in STEPS]
    try:
        for client in clients:
            read_all(client.sock)
            port = client.sock.getsockname()[1]
            assert refusal(broker, port) == "the client did not complete it in time"
            assert len(failures(broker, port)) == 1
        mute = ByHand(broker, context)
        clients.append(mute)
        mute.handshake()
        assert mute.read(1) == b""      # close_notify
        broker.wait_log("disconnected: exceeded timeout. Cause: no CONNECT within connect_timeout")
        inside.ping()
    finally:
        for client in clients:
            client.close()


# Very many

@pytest.fixture
def crowd():
    """crowd(broker, n, data): n connections that have sent this and nothing more."""
    with contextlib.ExitStack() as stack:
        def create(broker, n, data=b""):
            made = [stack.enter_context(connection(broker)) for _ in range(n)]
            for s in made:
                s.sendall(data)
            return made
        yield create


class Meter:
    """A client that watches the memory in use."""

    def __init__(self, client):
        self.client = client
        self.heap = None
        client.subscribe("$SYS/broker/heap/current", "$SYS/broker/uptime")

    def read(self):
        """The figure of now: that of the second update from here on."""
        ticks = 0
        while ticks < 2:
            p = self.client.receive()
            if p.topic.endswith("heap/current"):
                self.heap = int(p.payload)
            elif not p.retain:
                ticks += 1
        return self.heap

    def expect_back(self, before):
        """Waits until the memory in use is what it was, but for a little."""
        wait_for(lambda: self.read() < before + 25_000, "memory back", timeout=30)


@pytest.fixture
def measured(new_broker, connect, pki):
    """measured(*lines): (broker, its Meter, the memory in use)"""
    def create(*lines):
        broker = new_broker("sys_interval 1", *lines, config=listener(pki.server()) + ANYBODY)
        meter = Meter(connect(broker=broker, context=trusting(pki.ca)))
        return broker, meter, meter.read()
    return create


def test_half_open_handshakes(measured, connect, pki, crowd):
    """Five hundred that begin a handshake and say no more, many more than max_handshakes: who is connected goes
    on, an honest newcomer comes in, memory is bounded and comes back."""
    broker, meter, before = measured("max_handshakes 20", "connect_timeout 4")
    a, b = (exchange(connect, broker, trusting(pki.ca)) for _ in "ab")
    a.subscribe("flood")
    crowd(broker, 500, client_hello("-tls1_2"))
    for i in range(50):
        b.publish("flood", str(i), qos=1)
        a.expect_publish("flood", str(i))
    honest = wait_for(lambda: honest_client(connect, broker, pki), "way in", timeout=30)
    b.publish("flood", "last", qos=1)
    a.expect_publish("flood", "last")
    assert meter.read() < before + 20 * 30_000 + 500 * 2_000
    honest.ping()
    meter.expect_back(before)
    gave_way = re.findall(r"refused by us: the client fell silent in the handshake, and others wait \(max_handshakes\)",
                          broker.log())
    assert gave_way


def honest_client(connect, broker, pki):
    """A client like any other, which tries again when it is not let in; None: not yet."""
    try:
        return exchange(connect, broker, trusting(pki.ca), timeout=10)
    except (ssl.SSLError, ConnectionError):
        return None


def test_one_gives_way(new_broker, connect, pki, crowd):
    """Who stalls in the only lane makes room when somebody else comes, and not before."""
    broker = new_broker("max_handshakes 1", config=listener(pki.server()) + ANYBODY, args=["-v"])
    stalled, = crowd(broker, 1, client_hello("-tls1_2"))
    assert stalled.recv(1) == b"\x16"
    exchange(connect, broker, trusting(pki.ca))
    assert refusal(broker, stalled.getsockname()[1]) == \
        "refused by us: the client fell silent in the handshake, and others wait (max_handshakes)"
    read_all(stalled)


def test_patience(new_broker, connect, pki, crowd):
    """Alone, a slow client has all the time of connect_timeout: nobody else wants the lane."""
    broker = new_broker("max_handshakes 1", config=listener(pki.server()) + ANYBODY)
    inside = exchange(connect, broker, trusting(pki.ca))
    slow = ByHand(broker, trusting(pki.ca))
    try:
        with pytest.raises(ssl.SSLWantReadError):
            slow.tls.do_handshake()
        slow.send()
        slow.take()
        for _ in range(100):
            inside.ping()
        slow.handshake()
        slow.write(SESSION)
        slow.send()
        assert slow.read(len(ANSWERS)) == ANSWERS
    finally:
        slow.close()


def test_many_at_once(new_broker, pki):
    """A class of a hundred that comes back after a power cut: all get in, though only four at a time. Whom
    the others could not wait for, as this machine was slow, tries again."""
    broker = new_broker("max_handshakes 4", config=listener(pki.server()) + ANYBODY)
    context = trusting(pki.ca)
    waiting = [ByHand(broker, context) for _ in range(100)]
    try:
        for client in waiting:
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.do_handshake()
            client.send()
        while waiting:
            client = waiting.pop(0)
            try:
                come_in(client)
            except (ssl.SSLError, ConnectionError):
                waiting.append(ByHand(broker, context))
            client.close()
    finally:
        for client in waiting:
            client.close()
    assert told(broker, "") == told_of(broker, r"refused by us: the client fell silent in the handshake")


def come_in(client):
    client.handshake()
    client.write(SESSION)
    client.send()
    assert client.read(len(ANSWERS)) == ANSWERS


def test_flood_of_plain_text(measured, connect, pki, crowd):
    """A hundred that send a megabyte of text each: nothing of it is kept."""
    broker, meter, before = measured()
    inside = exchange(connect, broker, trusting(pki.ca))
    for s in crowd(broker, 100):
        s.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            for _ in range(20):
                s.send(b"all work and no play makes jack a dull boy\n" * 1300)
        inside.ping()
    meter.expect_back(before)
    assert told(broker, NOT_TLS) == 100


def test_announced_records(measured, pki, crowd):
    """A hundred that announce a large record and send two bytes of it: memory follows what has come."""
    broker, meter, before = measured("connect_timeout 3")
    crowd(broker, 100, record(b"\x01\x00", length=16000))
    assert meter.read() < before + 100 * 3000
    meter.expect_back(before)


def test_announced_records_of_clients(measured, pki):
    """The same from clients that are inside."""
    broker, meter, before = measured()
    clients = [ByHand(broker, trusting(pki.ca)) for _ in range(50)]
    try:
        for i, client in enumerate(clients):
            client.handshake()
            client.write(connect_packet(client_id=f"c{i}"))
            client.send()
            assert client.read(4) == b"\x20\x02\x00\x00"
        idle = meter.read()
        for client in clients:
            client.sock.sendall(record(b"xx", type=23, version=b"\x03\x03", length=16000))
        assert meter.read() < idle + 50 * 2000
    finally:
        for client in clients:
            client.close()
    meter.expect_back(before)
