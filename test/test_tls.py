"""TLS on the wire: suites, curves, records of all sizes, both ends of a connection, keys in all forms, and the
usual clients. Certificates of clients are the subject of test_tls_certs.py, bad input of test_tls_hostile.py."""

import re
import socket
import ssl
import subprocess

import pytest

from test_clients import LARGE, MQTTX, mosquitto, mqttjs, pub, start, sub  # noqa: F401
from tls import ANYBODY, SERVER, exchange, listener, mutual, openssl, trusting
from wire import CONNACK, V5, Broker, Will, connect as connect_packet, decode, disconnect, pingreq, publish, subscribe

SUITES = ["AES128-GCM-{}256", "AES256-GCM-{}384", "CHACHA20-POLY1305"]
GROUPS = {"X25519": "X25519", "P-256": "prime256v1", "P-384": "secp384r1", "P-521": "secp521r1"}

each_key = pytest.mark.parametrize("key", ["P-256", "rsa2048"])


def suite(key, kind):
    """OpenSSL's name of a suite that goes with this kind of key."""
    return ("ECDHE-RSA-" if key.startswith("rsa") else "ECDHE-ECDSA-") + kind.format("SHA")


@pytest.fixture(scope="module")
def brokers(pki):
    """brokers(key): the broker of this module whose certificate has such a key."""
    running = {}

    def of(key="P-256"):
        if key not in running:
            running[key] = Broker(config=listener(pki.server(key)) + ANYBODY, args=["-v"])
            running[key].start()
        return running[key]

    yield of
    for one in running.values():
        one.cleanup()


@pytest.fixture
def broker(brokers):
    return brokers()


@pytest.fixture
def context(pki):
    return trusting(pki.ca)


# OpenSSL's client

SESSION = connect_packet(client_id="s_client") + publish(4, "t", "x", 1, pid=1) + pingreq() + disconnect()
ANSWERS = b"\x20\x02\x00\x00" b"\x40\x02\x00\x01" b"\xd0\x00"


def s_client_words(broker, pki, options):
    return ["openssl", "s_client", "-connect", "127.0.0.1:%d" % broker.port, "-CAfile", pki.ca.cert,
            "-verify_return_error", "-verify_hostname", "localhost", *options]


def s_client(broker, pki, *options, input=SESSION):
    """Runs openssl s_client to its end: (exit code, what came from the broker, its own words)."""
    done = subprocess.run(s_client_words(broker, pki, ("-brief", "-ign_eof", *options)), input=input,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=20)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("rsa", [False, True], ids=["EC", "RSA"])
@pytest.mark.parametrize("kind", SUITES)
@pytest.mark.parametrize("group", GROUPS)
def test_suites_and_curves(brokers, pki, rsa, kind, group):
    key = "rsa2048" if rsa else "P-256" if group == "X25519" else group
    broker, before = brokers(key), brokers(key).mark()
    # the curve of an EC certificate must be among those that the client names
    groups = GROUPS[group] if rsa or key == group else f"{GROUPS[key]}:{GROUPS[group]}"
    code, answers, words = s_client(broker, pki, "-cipher", suite(key, kind), "-groups", groups)
    assert (code, answers) == (0, ANSWERS), words
    assert re.search(r"Ciphersuite: %s$" % suite(key, kind), words, re.M)
    assert re.search(r"Server Temp Key: (ECDH, )?%s, " % GROUPS[group].replace("secp", "(secp|P-)")
                     .replace("prime256v1", "(prime256v1|P-256)"), words), words
    broker.wait_log(f"Client s_client negotiated TLSv1.2 cipher {suite(key, kind)}$", after=before)


@pytest.mark.parametrize("options", [("-no_ticket",), ("-tls1_2",), ("-no_etm",), ("-legacy_renegotiation",),
                                     ("-sigalgs", "ECDSA+SHA512"), ("-servername", "a" * 250)])
def test_openssl_options(broker, pki, options):
    code, answers, words = s_client(broker, pki, *options)
    assert (code, answers) == (0, ANSWERS), words


@each_key
def test_server_preference(brokers, pki, connect, key):
    """The broker chooses, in its own order, whatever the client likes best."""
    order = ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"]
    names = [suite(key, kind) for kind in order]
    chosen = set()
    for offer in (names, names[::-1]):
        client = connect(broker=brokers(key), context=trusting(pki.ca, ciphers=":".join(offer)))
        chosen.add(client.sock.cipher()[0])
    assert len(chosen) == 1 and chosen <= {names[0], names[2]}


def test_ciphers(new_broker, pki, connect):
    """The option ciphers leaves these, in this order; what is not known is told and left out."""
    names = ["ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES256-GCM-SHA384"]
    broker = new_broker(config=listener(pki.server(), "ciphers " + ":".join(names + ["AES128-SHA"])) + ANYBODY)
    broker.wait_log("Warning: ciphers: 'AES128-SHA' is not known to midge and left out")
    for offer, chosen in (("DEFAULT", names[0]), (":".join(names[::-1]), names[0]), (names[1], names[1])):
        client = connect(broker=broker, context=trusting(pki.ca, ciphers=offer))
        assert client.sock.cipher()[0] == chosen
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        connect(broker=broker, context=trusting(pki.ca, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256"))


OLD = r"refused by us: the client offers no TLS 1\.2, only older versions; it needs a newer TLS library"
NOTHING_IN_COMMON = r"refused by us: no cipher suite, curve or signature in common"

REFUSALS = {
    "static RSA": (("-tls1_2", "-cipher", "AES128-GCM-SHA256"), 40, NOTHING_IN_COMMON),
    "CBC": (("-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA256"), 40, NOTHING_IN_COMMON),
    "finite field": (("-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"), 40, NOTHING_IN_COMMON),
    "other key": (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"), 40, NOTHING_IN_COMMON),
    "X448 only": (("-tls1_2", "-groups", "X448"), 40, NOTHING_IN_COMMON),
    "PSS only": (("-tls1_2", "-sigalgs", "RSA-PSS+SHA256"), 40, NOTHING_IN_COMMON),
    "TLS 1.3 only": (("-tls1_3",), 40, NOTHING_IN_COMMON + ".*TLS 1.3 only"),
    "TLS 1.1": (("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"), 70, OLD),
    "TLS 1.0": (("-tls1", "-cipher", "DEFAULT@SECLEVEL=0"), 70, OLD),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_offers(brokers, pki, case):
    options, alert, reason = REFUSALS[case]
    broker, before = brokers("rsa2048"), brokers("rsa2048").mark()
    hello = client_hello(*options)
    with socket.create_connection(broker.address, timeout=10) as s:
        s.sendall(hello)
        answer = read_all(s)
    assert answer[:1] + answer[3:] == bytes([21, 0, 2, 2, alert]), answer.hex(" ")
    assert answer[1] == 3, f"no client reads an alert of this version: {answer[1:3].hex()}"
    broker.wait_log(rf"TLS handshake with 127\.0\.0\.1:\d+ on port {broker.port} failed: {reason}", after=before)


def client_hello(*options):
    """The first thing that openssl s_client says with these options."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = subprocess.Popen(["openssl", "s_client", "-connect", "127.0.0.1:%d" % server.getsockname()[1],
                                   *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        server.settimeout(10)
        with server.accept()[0] as s:
            s.settimeout(10)
            hello = b""
            while len(hello) < 5 or len(hello) < 5 + int.from_bytes(hello[3:5], "big"):
                hello += s.recv(65536)
        client.wait(10)
    return hello


def read_all(s):
    data = b""
    while True:
        try:
            more = s.recv(65536)
        except ConnectionResetError:
            more = b""
        if not more:
            return data
        data += more


@pytest.mark.parametrize("kind", SUITES)
@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_maximum_fragment_length(broker, pki, connect, context, size, kind):
    """A client with small buffers gets small records only (its OpenSSL checks), and the next client gets
    what it would have got without that one."""
    client = subprocess.Popen(
        s_client_words(broker, pki, ("-quiet", "-no_ticket", "-maxfraglen", str(size), "-cipher",
                                     suite("P-256", kind))),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        payload = LARGE[:100_000]
        echo = publish(4, "small", payload)
        client.stdin.write(connect_packet(client_id=f"small{size}") + subscribe(4, 1, [("small", 0)]) + echo)
        client.stdin.flush()
        answers = client.stdout.read(4 + 5 + len(echo))
        assert answers[9:] == echo
        assert decode(4, answers[:4]).type == CONNACK
        client.stdin.write(disconnect())
        client.stdin.close()
        assert client.wait(10) == 0
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
    large = exchange(connect, broker, context)
    large.subscribe("large")
    large.publish("large", LARGE, qos=1)
    large.expect_publish("large", LARGE)


def test_reconnect(broker, pki):
    """openssl s_client -reconnect: five more connections, each resumes the first session."""
    before = broker.mark()
    done = subprocess.run(s_client_words(broker, pki, ("-reconnect", "-no_ticket", "-tls1_2")),
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
    words = done.stdout.decode()
    assert len(re.findall(r"^New, TLSv1.2", words, re.M)) == 1, words
    assert len(re.findall(r"^Reused, TLSv1.2", words, re.M)) == 5, words
    broker.wait_log(r"TLS handshake .* succeeded: TLSv1\.2 cipher \S+, resumed\.", after=before)
    log = broker.log().splitlines()[before:]
    assert sum(", resumed" in line for line in log) == 5


def test_renegotiation(broker, pki, connect, context):
    """A client that wants to renegotiate is told that this is not done."""
    client = subprocess.Popen(s_client_words(broker, pki, ("-tls1_2", "-cipher", "ECDHE+AESGCM")),
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        broker_client = exchange(connect, broker, context)
        client.stdin.write(b"R\n")
        client.stdin.flush()
        words = client.stdout.read().decode(errors="replace")
        assert "no renegotiation" in words
        broker_client.ping()
    finally:
        client.stdin.close()
        client.kill()
        client.wait()
        client.stdout.close()


# Python's ssl, by hand

class ByHand:
    """A client whose ciphertext goes through our hands: it leaves by send(), when and as the test wants."""

    def __init__(self, broker, context, session=None):
        self.sock = socket.create_connection(broker.address, timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost", session=session)
        self.plain = b""

    def send(self, step=0):
        """Sends what is there, in pieces of this size; 0: all at once."""
        data = self.outgoing.read()
        for i in range(0, len(data), step or len(data) or 1):
            self.sock.sendall(data[i:i + (step or len(data))])

    def handshake(self, step=0):
        while True:
            try:
                self.tls.do_handshake()
                return self.send(step)
            except ssl.SSLWantReadError:
                self.send(step)
                self.take(step)

    def take(self, step=0):
        data = self.sock.recv(step or 65536)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    def read(self, n, step=0):
        """n bytes of plaintext, fewer if close_notify comes before; an end without it is an error."""
        while len(self.plain) < n:
            try:
                more = self.tls.read(n - len(self.plain))
                if not more:
                    break
                self.plain += more
            except ssl.SSLWantReadError:
                self.take(step)
        data, self.plain = self.plain[:n], self.plain[n:]
        return data

    def write(self, *chunks):
        """One record, or more where they must be, for each."""
        for chunk in chunks:
            assert self.tls.write(chunk) == len(chunk)

    def close(self):
        self.sock.close()


@pytest.fixture
def by_hand(broker):
    made = []

    def create(context, session=None):
        made.append(ByHand(broker, context, session))
        return made[-1]

    yield create
    for one in made:
        one.close()


@pytest.mark.parametrize("kind", SUITES)
def test_byte_by_byte(by_hand, pki, kind):
    """Everything, the handshake included, comes and is read byte by byte."""
    client = by_hand(trusting(pki.ca, ciphers=suite("P-256", kind)))
    client.handshake(step=1)
    client.write(SESSION)
    client.send(step=1)
    assert client.read(len(ANSWERS), step=1) == ANSWERS
    assert client.read(1, step=1) == b""    # close_notify, and no truncation


@pytest.mark.parametrize("kind", SUITES)
def test_many_records_in_one_segment(by_hand, pki, kind):
    client = by_hand(trusting(pki.ca, ciphers=suite("P-256", kind)))
    client.handshake()
    client.write(connect_packet(client_id="segment"), *[pingreq()] * 200)
    client.send()
    assert client.read(4 + 2 * 200) == b"\x20\x02\x00\x00" + b"\xd0\x00" * 200


@pytest.mark.parametrize("kind", SUITES)
def test_packets_in_many_records(by_hand, pki, kind):
    """Each record has one byte of a packet; empty ones do no harm either (some clients send them)."""
    client = by_hand(trusting(pki.ca, ciphers=suite("P-256", kind)))
    client.handshake()
    client.write(*[bytes([b]) for b in SESSION])
    client.send()
    assert client.read(len(ANSWERS)) == ANSWERS


@pytest.mark.parametrize("kind", SUITES)
def test_largest_records(by_hand, pki, kind):
    """Records of 16384 bytes, more than a TCP segment or half of one each."""
    client = by_hand(trusting(pki.ca, ciphers=suite("P-256", kind)))
    client.handshake()
    echo = publish(4, "big", LARGE[:16384 - 10]) * 20
    data = connect_packet(client_id="big") + subscribe(4, 1, [("big", 0)]) + echo
    client.write(*[data[i:i + 16384] for i in range(0, len(data), 16384)])
    for step in (1400, 20000):
        client.send(step)
    assert client.read(9 + len(echo))[9:] == echo


@pytest.mark.parametrize("cut", range(1, 7))
def test_record_cut_in_its_head(broker, by_hand, connect, context, cut):
    client, other = by_hand(context), connect(broker=broker, context=context)
    client.handshake()
    client.write(SESSION)
    data = client.outgoing.read()
    client.sock.sendall(data[:cut])
    other.ping()    # the broker has seen that much
    client.sock.sendall(data[cut:])
    assert client.read(len(ANSWERS)) == ANSWERS


def test_connect_with_the_last_handshake_record(by_hand, context):
    """What comes in one segment with the end of the handshake is not lost."""
    first = by_hand(context)
    first.handshake()
    client = by_hand(context, first.tls.session)
    while True:
        try:
            client.tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.send()
            client.take()
    assert client.tls.session_reused    # then the last word is the client's
    client.write(SESSION)
    client.send()
    assert client.read(len(ANSWERS)) == ANSWERS


@pytest.mark.parametrize("kind", SUITES)
def test_large_messages(brokers, connect, pki, kind):
    """A megabyte each way, several times, between TLS clients; one reads late."""
    broker, context = brokers("rsa2048"), trusting(pki.ca, ciphers=suite("rsa2048", kind))
    a, b = (connect(broker=broker, context=context, version=V5, timeout=20) for _ in "ab")
    for client in (a, b):
        client.subscribe("mb/" + client.id)
    for i in range(5):
        a.publish("mb/" + b.id, LARGE[i:], qos=1)
        b.publish("mb/" + a.id, LARGE[:-1 - i])
    for i in range(5):
        b.expect_publish("mb/" + b.id, LARGE[i:])
        a.expect_publish("mb/" + a.id, LARGE[:-1 - i])


def test_plain_and_tls_side_by_side(new_broker, connect, pki, context):
    broker = new_broker(config=listener(pki.server()) + "listener {port2} 127.0.0.1\n" + ANYBODY)
    plain = connect(broker=broker, address=("127.0.0.1", broker.ports["port2"]))
    secure = connect(broker=broker, context=context)
    plain.subscribe("to/plain")
    secure.subscribe("to/secure")
    for size in (0, 1, 100, 16383, 16384, 16385, 200_000):
        secure.publish("to/plain", LARGE[:size])
        plain.publish("to/secure", LARGE[-size:] if size else b"")
        plain.expect_publish("to/plain", LARGE[:size])
        secure.expect_publish("to/secure", LARGE[-size:] if size else b"")


def test_default_listener(new_broker, connect, pki, context):
    """The configuration of the lab sheets: port 8883 and files, no listener line."""
    pair = pki.server()
    broker = new_broker(config=f"port {{port}}\ncafile {pki.ca.cert}\ncertfile {pair.cert}\nkeyfile {pair.key}\n"
                        "allow_anonymous true\nlistener {port2}\n")
    exchange(connect, broker, context)
    connect(broker=broker, address=("127.0.0.1", broker.ports["port2"])).ping()


# The end of a connection

@pytest.fixture
def watched(broker, connect, context, topic):
    """(a client with a will, one who gets that will, its topic)"""
    watcher, victim = (connect(broker=broker, context=context, will=Will(topic, who) if who == "victim" else None)
                       for who in ("watcher", "victim"))
    watcher.subscribe(topic)
    return victim, watcher, topic


def test_close_notify_of_the_client(broker, watched):
    """An orderly end of TLS is answered by one; for MQTT it is no DISCONNECT, so the will is published."""
    victim, watcher, topic = watched
    victim.sock.unwrap().close()    # waits for the answer
    watcher.expect_publish(topic, "victim")
    broker.wait_log(rf"Client {victim.id} \[\S+\] disconnected: connection closed by client")


def test_close_notify_of_the_broker(broker, watched):
    """After DISCONNECT the broker says goodbye in TLS too, and no will is published."""
    victim, watcher, topic = watched
    victim.disconnect()     # fails if the end comes without close_notify
    watcher.nothing()


def test_refusal_is_readable(new_broker, dial, pki, context):
    """What the broker sends last is not overtaken by the end: CONNACK with the reason, close_notify."""
    broker = new_broker(config=listener(pki.server(), "allow_anonymous false"))
    for _ in range(10):
        client = dial(broker, context=context)
        client.connect("nobody", reason=5)
        client.expect_closed()


@pytest.mark.parametrize("reset", [False, True])
def test_truncation(watched, reset):
    """An end without close_notify: the will is published."""
    victim, watcher, topic = watched
    victim.close(reset)
    watcher.expect_publish(topic, "victim")


def test_truncation_in_a_record(broker, by_hand, connect, context, topic):
    """Half of a record with a DISCONNECT is none."""
    watcher, victim = connect(broker=broker, context=context), by_hand(context)
    watcher.subscribe(topic)
    victim.handshake()
    victim.write(connect_packet(client_id="cut", will=Will(topic, "cut")))
    victim.send()
    assert victim.read(4) == b"\x20\x02\x00\x00"
    victim.write(disconnect())
    victim.sock.sendall(victim.outgoing.read()[:-1])
    victim.close()
    watcher.expect_publish(topic, "cut")


def test_nothing_after_close_notify(broker, by_hand, connect, context, topic):
    """What follows a close_notify is not looked at."""
    watcher, client = connect(broker=broker, context=context), by_hand(context)
    watcher.subscribe(topic)
    client.handshake()
    client.write(connect_packet(client_id="end"))
    client.send()
    assert client.read(4) == b"\x20\x02\x00\x00"
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    data = client.outgoing.read()
    client.sock.sendall(data + data[:3] + b"\x00\x18" + bytes(24))
    client.take()
    client.tls.unwrap()
    broker.wait_log(r"Client end \[\S+\] disconnected: connection closed by client")
    watcher.nothing()


# Keys and certificates in all forms

@pytest.mark.parametrize("key", ["P-256", "P-384", "P-521", "rsa2048", "rsa3072", "rsa4096"])
def test_server_keys(new_broker, connect, pki, key):
    broker = new_broker(config=listener(pki.server(key)) + ANYBODY)
    exchange(connect, broker, trusting(pki.ca))


def rewrite(path, out, change):
    with open(path, "rb") as f:
        text = f.read()
    with open(out, "wb") as f:
        f.write(change(text))
    return out


FORMS = {
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "BOM": lambda text: b"\xef\xbb\xbf" + text,
    "BOM and CRLF": lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
    "blanks": lambda text: text.replace(b"\n", b" \t \n"),
    "text around": lambda text: b"Bag Attributes\n    friendlyName: x\n" + text + b"\nthe end, no newline",
    "no last newline": lambda text: text.rstrip(b"\n"),
    "twice": lambda text: text + text,
}


@each_key
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_files(new_broker, connect, pki, tmp_path, key, form):
    pair = pki.server(key)
    files = [rewrite(path, str(tmp_path / name), FORMS[form])
             for path, name in ((pair.cert, "crt"), (pair.key, "key"), (pki.ca.cert, "ca"))]
    lines = "listener {port} 127.0.0.1\ncertfile %s\nkeyfile %s\ncafile %s\n" % tuple(files)
    broker = new_broker(config=lines + ANYBODY)
    exchange(connect, broker, trusting(pki.ca))


@pytest.mark.parametrize("form", ["PKCS#1", "PKCS#8", "SEC1", "SEC1 with parameters", "key in certfile",
                                  "certificate in keyfile"])
def test_forms_of_keys(new_broker, connect, pki, tmp_path, form):
    pair = pki.server("rsa2048" if form == "PKCS#1" else "P-256")
    key, cert = str(tmp_path / "key"), pair.cert
    if form in ("PKCS#1", "SEC1"):
        openssl("pkey", "-in", pair.key, "-traditional", "-out", key)
        with open(key) as f:
            assert f"BEGIN {'RSA' if form == 'PKCS#1' else 'EC'} PRIVATE KEY" in f.read()
    elif form == "PKCS#8":
        openssl("pkcs8", "-topk8", "-nocrypt", "-in", pair.key, "-out", key)
    elif form == "SEC1 with parameters":
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-out", key)
        with open(key) as f:
            assert "BEGIN EC PARAMETERS" in f.read()
        cert = pki.ca.issue("localhost", key, SERVER).cert
    elif form == "key in certfile":
        with open(pair.key) as f:
            key = cert = rewrite(pair.cert, key, lambda text: f.read().encode() + text)
    else:
        with open(pair.key) as f:
            rewrite(pair.cert, key, lambda text: text + f.read().encode())
    broker = new_broker(config=f"listener {{port}} 127.0.0.1\ncertfile {cert}\nkeyfile {key}\n" + ANYBODY)
    exchange(connect, broker, trusting(pki.ca))


def sent_chain(broker, pki, authority):
    """The subjects of the certificates that the broker sends."""
    done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{broker.port}", "-CAfile", authority.cert,
                           "-showcerts", "-verify_return_error"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=20)
    words = done.stdout.decode()
    assert "Verify return code: 0" in words, words
    return re.findall(r"^ *\d+ s:(?:.*CN *= *)(.*)$", words, re.M)


@pytest.fixture
def deep(pki):
    """A root, two authorities below, and a server certificate of the last."""
    root = pki.authority("Root")
    middle = pki.authority("Middle", parent=root)
    low = pki.authority("Low", parent=middle)
    return root, middle, low, low.issue("localhost", extensions=SERVER)


def test_chain_in_certfile(new_broker, connect, pki, deep, tmp_path):
    root, middle, low, leaf = deep
    chain = tmp_path / "chain.pem"
    chain.write_text(leaf.pem() + low.pem() + middle.pem())
    broker = new_broker(config=f"listener {{port}} 127.0.0.1\ncertfile {chain}\nkeyfile {leaf.key}\n" + ANYBODY)
    assert sent_chain(broker, pki, root) == ["localhost", "Low", "Middle"]
    exchange(connect, broker, trusting(root))


@pytest.mark.parametrize("option", ["cafile", "capath"])
def test_leaf_completed(new_broker, connect, pki, deep, tmp_path, option):
    """The issuers are found in cafile or capath; the root, which everybody must have, is left out."""
    root, middle, low, leaf = deep
    if option == "cafile":
        path = tmp_path / "cas.pem"
        path.write_text(root.pem() + middle.pem() + low.pem() + pki.other_ca.pem())
    else:
        path = tmp_path
        for i, one in enumerate((low, root, pki.other_ca, middle)):
            (tmp_path / f"{i}.{'crt' if i % 2 else 'pem'}").write_text(one.pem())
    broker = new_broker(config=listener(leaf, f"{option} {path}") + ANYBODY)
    assert sent_chain(broker, pki, root) == ["localhost", "Low", "Middle"]
    exchange(connect, broker, trusting(root))


def test_long_chain(new_broker, connect, pki, tmp_path):
    """Certificates that fill more than one small record."""
    names = ",".join(f"DNS:host{i}.example.org" for i in range(400))
    leaf = pki.ca.issue("localhost", extensions=f"{SERVER},{names}")
    assert len(leaf.pem()) > 10_000
    broker = new_broker(config=listener(leaf) + ANYBODY)
    exchange(connect, broker, trusting(pki.ca))


def test_v1_server_certificate(new_broker, pki, sub, pub):
    """As `openssl x509 -req` makes it: no extensions, the host name as CN."""
    broker = new_broker(config=listener(pki.ca.issue("localhost")) + ANYBODY, args=["-v"])
    files = f"--cafile {pki.ca.cert} -h localhost -V mqttv311"
    reader = sub(f"{files} -t v1 -C 1", broker)
    pub(f"{files} -t v1 -m hello", broker)
    assert reader.finish() == ["hello"]


# Resumption

def test_resumption(broker, by_hand, context):
    first = by_hand(context)
    first.handshake()
    first.write(SESSION)
    first.send()
    assert first.read(len(ANSWERS)) == ANSWERS
    again = by_hand(context, first.tls.session)
    again.handshake()
    assert again.tls.session_reused
    again.write(SESSION)
    again.send()
    assert again.read(len(ANSWERS)) == ANSWERS


def test_unknown_session(new_broker, broker, by_hand, context, pki, dial):
    """A session of another broker, or of before a restart, is not known: a full handshake follows."""
    other = new_broker(config=listener(pki.server()) + ANYBODY)
    client = ByHand(other, context)
    client.handshake()
    client.close()
    again = by_hand(context, client.tls.session)
    again.handshake()
    assert not again.tls.session_reused


# The usual clients

@pytest.mark.parametrize("key", ["P-256", "rsa2048"])
@pytest.mark.parametrize("version", ["mqttv31", "mqttv311", "mqttv5"])
def test_mosquitto(new_broker, pki, sub, pub, key, version):
    pair = pki.ca.issue("sensor", key)
    broker = new_broker(config=mutual(pki.server(key)) + ANYBODY, args=["-v"])
    files = f"-V {version} --cafile {pki.ca.cert} --cert {pair.cert} --key {pair.key} -h localhost -q 2"
    reader = sub(f"{files} -t lab -C 1", broker)
    pub(f"{files} -t lab -m 'bonjour à tous'", broker)
    assert reader.finish() == ["bonjour à tous"]
    broker.wait_log(r'TLS handshake .* succeeded: TLSv1\.2 cipher \S+, certificate "sensor"')
    broker.wait_log(rf"Client {reader.id} negotiated TLSv1.2 cipher ECDHE-")


@pytest.mark.parametrize("options, reason", [
    ("--cafile {other} -h localhost", r"refused by the client: it does not trust the CA of our certificate; give it "
                                      r"the CA's file \(mosquitto_sub --cafile\)"),
    ("--cafile {ca} -h 127.0.0.2", r"refused by the client: it does not accept our certificate; either .* connects to "
                                   r"another name than the certificate is for \(localhost, 127\.0\.0\.1\)"),
])
def test_mosquitto_refuses(new_broker, pki, start, options, reason):
    """What the client does not like in us is told with the remedy."""
    broker = new_broker(config=listener(pki.server()).replace("127.0.0.1", "") + ANYBODY)
    words = options.format(ca=pki.ca.cert, other=pki.other_ca.cert).split()
    program = start(["mosquitto_pub", *words, "-p", str(broker.port), "-t", "t", "-m", "x"])
    assert program.process.wait(20) != 0
    broker.wait_log(rf"TLS handshake with \S+:\d+ on port {broker.port} failed: {reason}")


def test_mqttjs_with_certificate(new_broker, pki, mqttjs):
    """MQTT.js as MQTTX uses it: MQTT 5, its own certificate, name and CA checked."""
    pair = pki.client()
    broker = new_broker(config=mutual(pki.server()) + ANYBODY, args=["-v"])
    options = dict(protocol="mqtts", host="localhost", ca=pki.ca.pem(), cert=pair.pem(), key=open(pair.key).read(),
                   rejectUnauthorized=True)
    one, two = (mqttjs(MQTTX, broker, **options) for _ in range(2))
    for qos in range(3):
        two.subscribe("ciel", qos=qos)
        one.publish("ciel", "é" * 30_000, qos=qos)
        assert two.message()["payload"] == "é" * 30_000
    broker.wait_log(r'TLS handshake .* succeeded: .*, certificate "pupil"')


def test_mqttjs_without_certificate(new_broker, pki, mqttjs):
    broker = new_broker(config=mutual(pki.server()) + ANYBODY)
    client = mqttjs(MQTTX, broker, wait=False, protocol="mqtts", host="localhost", ca=pki.ca.pem(),
                    reconnectPeriod=0)
    assert "handshake failure" in client.event("error")["error"]
    broker.wait_log("failed: refused by us: the client sent no certificate")


@pytest.mark.parametrize("priority", [
    "NORMAL", "SECURE192:+SIGN-ALL", "NORMAL:-VERS-ALL:+VERS-TLS1.2", "NORMAL:-CIPHER-ALL:+CHACHA20-POLY1305",
    "NORMAL:-GROUP-ALL:+GROUP-SECP384R1", "LEGACY",
])
def test_gnutls(broker, pki, priority):
    words = gnutls(broker, pki, "--priority", priority)
    assert "- Handshake was completed" in words


def test_gnutls_resumes(broker, pki):
    words = gnutls(broker, pki, "--resume", "--priority", "NORMAL:%NO_TICKETS")
    assert "*** This is a resumed session" in words


def gnutls(broker, pki, *options):
    done = subprocess.run(["gnutls-cli", "--x509cafile", pki.ca.cert, "-p", str(broker.port), *options, "localhost"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode()


def test_curl(broker, pki):
    """A browser that strays here: it trusts us, but it speaks no MQTT."""
    before = broker.mark()
    done = subprocess.run(["curl", "-sS", "--cacert", pki.ca.cert, f"https://localhost:{broker.port}/"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
    assert done.returncode in (52, 56), done.stdout.decode()    # an empty answer
    broker.wait_log(r"TLS handshake .* succeeded", after=before)
    broker.wait_log(r"disconnected: protocol error. Cause: first packet is not CONNECT", after=before)
