"""A broker with TLS in its daily life: certificates are renewed while it runs, the clock of the Pi is wrong after
it was switched on, and a class wants to see in Wireshark what is encrypted."""

import os
import re
import shutil
import signal
import ssl
import stat
import subprocess

import pytest

from test_clients import WAIT_S, start  # noqa: F401
from tls import ANYBODY, READS_AGAIN, SERVER, clock, exchange, listener, mutual, refused, stamp, together, trusting
from wire import wait_for


class Renewable:
    """A listener whose files a test replaces."""

    def __init__(self, pki, dir):
        self.pki, self.dir = pki, dir
        self.cert, self.key = str(dir / "crt"), str(dir / "key")
        self.issuer = pki.ca

    def put(self, pair):
        for source, path in ((pair.cert, self.cert), (pair.key, self.key)):
            shutil.copy(source, path + ".new")
            os.replace(path + ".new", path)
        return self


@pytest.fixture
def files(pki, tmp_path):
    return Renewable(pki, tmp_path)


def serial(client):
    return client.sock.getpeercert()["serialNumber"]


def reload(broker, words="The certificates of port %d were read anew"):
    before = broker.mark()
    broker.signal(signal.SIGHUP)
    broker.wait_log(words % broker.port, after=before)


@pytest.mark.parametrize("kind", ["P-256", "rsa2048"])
def test_hup_reads_new_files(new_broker, connect, pki, files, kind):
    """HUP: new connections get the new certificate, those that are there go on."""
    broker = new_broker(config=listener(files.put(pki.server())) + READS_AGAIN)
    context = trusting(pki.ca)
    old = exchange(connect, broker, context)
    session = old.sock.session
    files.put(pki.ca.issue("localhost", kind, SERVER))
    reload(broker)
    new = exchange(connect, broker, context)
    assert serial(new) != serial(old)
    old.subscribe("t")
    new.publish("t", "hello")
    old.expect_publish("t", "hello")
    # nor is the old certificate of any use by a session that was made with it
    again = connect(broker=broker, context=Offering(context, session))
    assert not again.sock.session_reused


class Offering:
    """A context that wants to resume this session."""

    def __init__(self, context, session):
        self.context, self.session = context, session

    def wrap_socket(self, sock, **options):
        return self.context.wrap_socket(sock, session=self.session, **options)


def test_hup_reads_new_authorities(new_broker, connect, pki, tmp_path):
    """A CA that is taken out of cafile lets nobody in any more, one that is put in does."""
    cafile = together(tmp_path / "cas", pki.ca)
    broker = new_broker(config=mutual(pki.server(), cafile=cafile) + READS_AGAIN)
    ours, theirs = trusting(pki.ca, pki.client()), trusting(pki.ca, pki.other_ca.issue("guest"))
    inside = exchange(connect, broker, ours)
    assert refused(broker, theirs)[0] == "TLSV1_ALERT_UNKNOWN_CA"
    together(tmp_path / "cas", pki.other_ca)
    reload(broker)
    exchange(connect, broker, theirs)
    assert refused(broker, ours)[0] == "TLSV1_ALERT_UNKNOWN_CA"
    inside.ping()


SPOILT = {
    "no certificate": lambda f: open(f.cert, "w").close(),
    "no key": lambda f: os.unlink(f.key),
    "half of a certificate": lambda f: os.truncate(f.cert, 300),
    "key of another": lambda f: shutil.copy(f.pki.client().key, f.key),
}


@pytest.mark.parametrize("case", SPOILT)
def test_hup_with_broken_files(new_broker, connect, pki, files, case):
    """What cannot be used leaves the old certificate in force, and is told."""
    broker = new_broker(config=listener(files.put(pki.server())) + READS_AGAIN)
    context = trusting(pki.ca)
    old = exchange(connect, broker, context)
    SPOILT[case](files)
    before = broker.mark()
    reload(broker, "Port %d goes on with the certificates that it had")
    broker.wait_log("Error: (Unable to load server|Server) ", after=before)
    assert serial(exchange(connect, broker, context)) == serial(old)
    files.put(pki.ca.issue("localhost", extensions=SERVER))
    reload(broker)
    assert serial(exchange(connect, broker, context)) != serial(old)
    old.ping()


def test_hup_in_the_middle_of_a_handshake(new_broker, dial, connect, pki, files):
    """A handshake that is under way ends with the certificate that it began with."""
    broker = new_broker(config=listener(files.put(pki.server())) + READS_AGAIN)
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting(pki.ca).wrap_bio(came, goes, server_hostname="localhost")
    client = dial(broker)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    client.sock.sendall(goes.read())
    came.write(client.sock.recv(65536))
    files.put(pki.ca.issue("localhost", extensions=SERVER))
    reload(broker)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.sock.sendall(goes.read())
            came.write(client.sock.recv(65536))
    assert tls.getpeercert()["serialNumber"] != serial(exchange(connect, broker, trusting(pki.ca)))


def test_changed_files_are_noticed(new_broker, connect, pki, files):
    """Without HUP too: files that have changed are read when somebody comes, at most every ten seconds."""
    broker = new_broker(config=listener(files.put(pki.server())) + READS_AGAIN, env=clock(pki, speed=10))
    context = trusting(pki.ca)
    old = exchange(connect, broker, context, keepalive=0)
    files.put(pki.ca.issue("localhost", extensions=SERVER))
    wait_for(lambda: serial(exchange(connect, broker, context)) != serial(old), "new certificate", timeout=20)
    broker.wait_log(f"The certificates of port {broker.port} were read anew")
    old.ping()
    # once is enough
    for _ in range(3):
        exchange(connect, broker, context)
    assert broker.log().count("were read anew") == 1


# The end of a certificate

@pytest.mark.parametrize("days, said", [
    (400.5, None), (30.5, None), (29.5, "expires in 29 days, on %s"), (6.5, "expires in 6 days, on %s"),
    (0.5, "expires in 0 days, on %s"), (-0.5, "has expired on %s: clients will refuse it"),
])
def test_reminder(new_broker, connect, pki, days, said):
    """A month before a certificate expires the log begins to warn; $SYS has the days that are left."""
    pair = pki.ca.issue("localhost", extensions=SERVER, days=(-300, days))
    last = stamp(days)
    last = f"{last[:4]}-{last[4:6]}-{last[6:8]}"
    broker = new_broker("listener {port2} 127.0.0.1", config=listener(pair) + ANYBODY)
    warnings = [line for line in broker.log().splitlines() if "Warning" in line]
    if said:
        assert len(warnings) == 1 and re.search(said % last, warnings[0]), warnings
    else:
        assert not warnings
    client = connect(broker=broker, address=("127.0.0.1", broker.ports["port2"]))
    topics = f"$SYS/broker/certificate/{broker.port}/"
    client.subscribe(topics + "#")
    values = {p.topic[len(topics):]: p.payload.decode() for p in (client.expect_publish() for _ in range(2))}
    assert values["expires"] == last
    assert int(values["days"]) == (int(days) if days > 0 else -1)


# The clock

WRONG = r"Warning: The clock looks wrong: it says 1970-01-0\d, but it is 20\d\d-\d\d-\d\d or later\. Certificates " \
        r"are judged by that date; set the clock \(date -s, or an NTP client\)\."


@pytest.fixture
def lost(new_broker, pki):
    """lost(*lines): a broker that was switched on in 1970."""
    def create(*lines, **options):
        return new_broker(config=mutual(pki.server(), *lines, **options) + READS_AGAIN, args=["-v"],
                          env=clock(pki, at=3600))
    return create


def test_clock_of_1970(lost, connect, pki):
    """Whoever has a certificate comes in all the same; one that has expired stays out; the log says why
    the dates are odd, once."""
    broker = lost()
    assert re.match(r"36\d\d: ", broker.log())
    broker.wait_log(WRONG)
    exchange(connect, broker, trusting(pki.ca, pki.client()))
    seen, why = refused(broker, trusting(pki.ca, pki.ca.issue("pupil", days=(-30, -2))))
    assert seen == "SSLV3_ALERT_CERTIFICATE_EXPIRED" and 'the certificate "pupil" has expired on' in why
    exchange(connect, broker, trusting(pki.ca, pki.client()))
    assert len(re.findall(WRONG, broker.log())) == 1


def test_new_certificate_in_1970(lost, connect, pki):
    """One that begins later than anything that the broker knows: nobody can tell whether it is too early."""
    exchange(connect, lost(), trusting(pki.ca, pki.ca.issue("pupil", days=(2, 30))))


def test_other_faults_in_1970(lost, pki):
    broker = lost()
    assert refused(broker, trusting(pki.ca))[0] == "SSLV3_ALERT_HANDSHAKE_FAILURE"
    assert refused(broker, trusting(pki.ca, pki.other_ca.issue("pupil")))[0] == "TLSV1_ALERT_UNKNOWN_CA"


def test_revocation_in_1970(lost, connect, pki, tmp_path):
    """Lists are judged by the same date: a good one revokes, an old one is too old."""
    ca = pki.authority()
    good, bad = ca.issue("good"), ca.issue("bad")
    ca.revoke(bad)
    broker = lost("crlfile " + ca.crl(str(tmp_path / "list")), cafile=ca.cert)
    exchange(connect, broker, trusting(pki.ca, good))
    assert refused(broker, trusting(pki.ca, bad))[0] == "SSLV3_ALERT_CERTIFICATE_REVOKED"
    ca.crl(str(tmp_path / "list"), days=(-30, -2))
    reload(broker)
    assert "was to be renewed by" in refused(broker, trusting(pki.ca, good))[1]


def test_own_certificate_in_1970(new_broker, pki):
    """That ours has expired is noticed in 1970 too."""
    pair = pki.ca.issue("localhost", extensions=SERVER, days=(-30, -2))
    broker = new_broker(config=listener(pair) + READS_AGAIN, env=clock(pki, at=3600))
    broker.wait_log(WRONG)
    broker.wait_log(r"Warning: The certificate \S+ has expired on 20\d\d-")


def test_right_clock(new_broker, connect, pki):
    """The library that the tests above use does nothing else."""
    broker = new_broker(config=mutual(pki.server()) + READS_AGAIN, env=clock(pki))
    exchange(connect, broker, trusting(pki.ca, pki.client()))
    assert "clock" not in broker.log()


# Wireshark

KEYS = r"CLIENT_RANDOM [0-9a-f]{64} [0-9a-f]{96}"


def test_keylog(new_broker, connect, pki):
    """One line for each connection, in a file for nobody else; the log says so, loudly."""
    broker = new_broker(config=listener(pki.server()) + ANYBODY, args=["--tls-keylog", "{dir}/keys"], start=False)
    os.chmod(broker.dir, 0o755)
    broker.start()
    broker.wait_log(r"TLS KEYS ARE WRITTEN TO \S+/keys: whoever can read that file can read all TLS traffic of this "
                    r"broker\. For Wireshark lessons only\.")
    keys = broker.path("keys")
    context = trusting(pki.ca)
    first = exchange(connect, broker, context)
    connect(broker=broker, context=Offering(context, first.sock.session))
    assert stat.S_IMODE(os.stat(keys).st_mode) == 0o600
    lines = open(keys).read().splitlines()
    assert len(lines) == 2 and all(re.fullmatch(KEYS, line) for line in lines)
    randoms, secrets = zip(*(line.split()[1:] for line in lines))
    assert randoms[0] != randoms[1] and secrets[0] == secrets[1]    # the second is a resumption
    broker.restart()
    exchange(connect, broker, context)
    assert len(open(keys).read().splitlines()) == 3     # appended


def test_no_keylog(new_broker, connect, pki):
    """Without the option nothing is written, and nothing said."""
    broker = new_broker(config=listener(pki.server()) + ANYBODY, args=["-v"])
    exchange(connect, broker, trusting(pki.ca))
    assert "KEYS" not in broker.log() and "CLIENT_RANDOM" not in broker.log()
    assert os.listdir(broker.dir) == ["midge.conf"]


def test_keylog_takes_rights_away(new_broker, connect, pki):
    """A file that is there already, readable for all, is closed to them first."""
    broker = new_broker(config=listener(pki.server()) + ANYBODY, args=["--tls-keylog", "{dir}/keys"], start=False)
    open(broker.path("keys"), "w").close()
    os.chmod(broker.path("keys"), 0o666)
    broker.start()
    assert stat.S_IMODE(os.stat(broker.path("keys")).st_mode) == 0o600


@pytest.mark.parametrize("make, why", [
    (lambda path, other: os.symlink(other, path), "it is a symbolic link"),
    (lambda path, other: os.mkfifo(path), ".+"),
    (lambda path, other: os.mkdir(path), ".+"),
], ids=["link", "pipe", "folder"])
def test_keylog_refused(new_broker, connect, pki, tmp_path, make, why):
    """Keys go into no file that somebody else may have laid there; the broker runs without."""
    other = tmp_path / "other"
    other.write_text("")
    broker = new_broker(config=listener(pki.server()) + ANYBODY, args=["--tls-keylog", "{dir}/keys"], start=False)
    make(broker.path("keys"), other)
    broker.start()
    broker.wait_log(rf"Error: Unable to open \S+/keys for TLS keys: {why}\.")
    exchange(connect, broker, trusting(pki.ca))
    assert other.read_text() == "" and "WRITTEN" not in broker.log()


class Capture:
    """tcpdump on the loopback interface; only these ports."""

    def __init__(self, start, path, *ports):
        self.path = str(path)
        # slots of 2000 bytes: of the largest size there would be too few, and packets are lost
        self.program = start(["tcpdump", "-i", "lo", "--immediate-mode", "-s", "2000", "-B", "8192", "-U",
                              "-Z", "root", "-w", self.path,
                              "tcp and (%s)" % " or ".join(f"port {p}" for p in ports)])
        try:
            self.program.take("listening on lo")
        except AssertionError:
            pytest.skip("no right to capture: " + str(self.program))

    def bytes(self):
        with open(self.path, "rb") as f:
            return f.read()

    def end(self):
        self.program.process.send_signal(signal.SIGINT)
        self.program.process.wait(WAIT_S)


def tshark(path, tls_port, mqtt_port, *options):
    """What Wireshark shows of MQTT: (port, topic, payload as text) of each PUBLISH."""
    done = subprocess.run(
        ["tshark", "-r", path, "-d", f"tcp.port=={tls_port},tls", "-d", f"tls.port=={tls_port},mqtt",
         "-d", f"tcp.port=={mqtt_port},mqtt", *options, "-Y", "mqtt.msgtype == 3", "-T", "fields",
         "-e", "tcp.dstport", "-e", "mqtt.topic", "-e", "mqtt.msg"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30)
    assert done.returncode == 0, done.stderr.decode()
    rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    return [(int(port), topic, text(payload)) for port, topic, payload in rows]


def text(payload):
    """Newer versions show bytes as hexadecimal digits."""
    digits = payload.replace(":", "")
    return bytes.fromhex(digits).decode() if re.fullmatch("([0-9a-f]{2})+", digits) else payload


@pytest.mark.skipif(not shutil.which("tcpdump") or not shutil.which("tshark"), reason="no tcpdump or no tshark")
@pytest.mark.parametrize("suite", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384",
                                   "ECDHE-ECDSA-CHACHA20-POLY1305"])
def test_wireshark(new_broker, connect, start, pki, tmp_path, suite):
    """The lesson: what goes over the plain port can be read, what goes over the TLS port cannot, and with the
    keys it can."""
    broker = new_broker(config=listener(pki.server()) + "listener {port2} 127.0.0.1\n" + ANYBODY,
                        args=["--tls-keylog", "{dir}/keys"])
    plain_port = broker.ports["port2"]
    capture = Capture(start, tmp_path / "lesson.pcap", broker.port, plain_port)
    secure = connect(broker=broker, context=trusting(pki.ca, ciphers=suite))
    plain = connect(broker=broker, address=("127.0.0.1", plain_port))
    secure.publish("lesson/secret", "the PIN is 4711", qos=1)
    plain.publish("lesson/open", "the PIN is 1234", qos=1)
    secure.disconnect()
    plain.publish("lesson/end", "the end", qos=1)
    wait_for(lambda: b"lesson/end" in capture.bytes(), "end of the lesson", WAIT_S)
    capture.end()
    assert b"lesson/open" in capture.bytes() and b"the PIN is 1234" in capture.bytes()
    assert b"lesson/secret" not in capture.bytes() and b"4711" not in capture.bytes()
    seen = [(plain_port, "lesson/open", "the PIN is 1234"), (plain_port, "lesson/end", "the end")]
    assert tshark(capture.path, broker.port, plain_port) == seen
    seen.insert(0, (broker.port, "lesson/secret", "the PIN is 4711"))
    keys = ("-o", "tls.keylog_file:" + broker.path("keys"))
    assert tshark(capture.path, broker.port, plain_port, *keys) == seen
