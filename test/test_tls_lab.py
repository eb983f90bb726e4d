"""Two lab sheets of a school, as pupils do them: passwords and TLS beside a plain port, seen with tcpdump; then a
CA of the teacher's, a certificate for each pupil, and who gets in with what. The commands are those of the sheets."""

import shutil
import subprocess

import pytest

from test_clients import MQTTX, mosquitto, mqttjs, pub, start, sub  # noqa: F401
from test_tls_life import WAIT_S, Capture, tshark
from wire import command, wait_for

SHEET = """
openssl req -new -x509 -days 365 -extensions v3_ca -keyout ca.key -out ca.crt -passout pass:teacher \\
    -subj '/C=FR/ST=Rhone/L=Lyon/O=CIEL/CN=CA CIEL'

openssl genrsa -out broker.key 2048
openssl req -out broker.csr -key broker.key -new -subj '/C=FR/O=CIEL/CN=localhost'
openssl x509 -req -in broker.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out broker.crt -days 365 \\
    -passin pass:teacher

for name in eleve1 eleve2; do
    openssl genrsa -out $name.key 2048
    openssl req -out $name.csr -key $name.key -new -subj "/C=FR/O=CIEL/CN=$name"
    openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out $name.crt -days 365 \\
        -passin pass:teacher
done

# another school
openssl req -new -x509 -days 365 -extensions v3_ca -keyout other.key -out other.crt -nodes -subj '/CN=Other school'
openssl req -new -newkey rsa:2048 -nodes -keyout stranger.key -out stranger.csr -subj '/CN=eleve1'
openssl x509 -req -in stranger.csr -CA other.crt -CAkey other.key -CAcreateserial -out stranger.crt -days 365
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder with the files of the sheet."""
    folder = tmp_path_factory.mktemp("lab")
    subprocess.run(["sh", "-e", "-c", SHEET], cwd=folder, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return folder


def files(lab):
    return f"cafile {lab}/ca.crt\ncertfile {lab}/broker.crt\nkeyfile {lab}/broker.key\n"


def with_certificate(lab, name):
    return f"--cafile {lab}/ca.crt --cert {lab}/{name}.crt --key {lab}/{name}.key -h localhost"


def without_certificate(lab):
    return f"--cafile {lab}/ca.crt -h localhost"


def plain(broker):
    return f"-p {broker.ports['port2']} -h 127.0.0.1"


@pytest.fixture
def client(start):
    """client(line): a mosquitto client as it is typed."""
    return lambda line: start(("mosquitto_" + line).split())


def test_files(lab):
    """What the sheet's commands make: an encrypted key of the CA, certificates of version 1 that it vouches for."""
    assert "ENCRYPTED" in (lab / "ca.key").read_text()
    for name in ("broker", "eleve1", "eleve2"):
        done = subprocess.run(["openssl", "verify", "-CAfile", "ca.crt", name + ".crt"], cwd=lab,
                              stdout=subprocess.PIPE)
        assert done.stdout.decode() == name + ".crt: OK\n"
    done = subprocess.run(["openssl", "verify", "-CAfile", "ca.crt", "stranger.crt"], cwd=lab,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode != 0 and b"verification failed" in done.stdout


# Sheet 1

def test_password(new_broker, client, sub, pub, tmp_path):
    """A password file, allow_anonymous false: who has no password or a wrong one is refused."""
    subprocess.run([*command(), "passwd", "-c", "-b", "users", "eleve", "secret"], cwd=tmp_path, check=True)
    broker = new_broker(config=f"listener {{port}}\nallow_anonymous false\npassword_file {tmp_path}/users\n",
                        args=["-v"])
    reader = sub("-u eleve -P secret -t topic0 -C 1", broker)
    for wrong in ("", " -u eleve -P wrong", " -u nobody -P secret", " -u eleve"):
        program = client(f"pub -h 127.0.0.1 -p {broker.port} -t topic0 -m no{wrong}")
        program.take("Connection error: Connection Refused: not authorised.")
        program.finish(5)
    pub("-u eleve -P secret -t topic0 -m yes", broker)
    assert reader.finish() == ["yes"]


def test_plain_and_tls(new_broker, client, lab):
    """Port 8883 with certificates beside port 1883 without: both exchange on topic0."""
    broker = new_broker(config="port {port}\n" + files(lab) + "require_certificate true\nlistener {port2}\n"
                        "allow_anonymous true\n", args=["-v"])
    secure = f"-p {broker.port} {with_certificate(lab, 'eleve1')}"
    readers = [client(f"sub -i r{i} {line} -t topic0 -C 2") for i, line in enumerate((secure, plain(broker)))]
    for i in range(2):
        broker.wait_log(f"Sending SUBACK to r{i}$", timeout=WAIT_S)
    client(f"pub {secure} -t topic0 -m over-tls -q 1").finish()
    client(f"pub {plain(broker)} -t topic0 -m in-the-open -q 1").finish()
    for reader in readers:
        assert reader.finish() == ["over-tls", "in-the-open"]


@pytest.mark.skipif(not shutil.which("tcpdump") or not shutil.which("tshark"), reason="no tcpdump or no tshark")
def test_on_the_wire(new_broker, client, start, lab, tmp_path):
    """What is sent to port 1883 can be read on the network, what is sent to 8883 cannot."""
    broker = new_broker(config="port {port}\n" + files(lab) + "require_certificate true\nlistener {port2}\n"
                        "allow_anonymous true\n", args=["-v"])
    secure = f"-p {broker.port} {with_certificate(lab, 'eleve1')}"
    captures = [Capture(start, tmp_path / f"{port}.pcap", broker.ports[port]) for port in ("port", "port2")]
    for line in (secure, plain(broker)):
        client(f"pub {line} -t topic0 -m bonjour-ciel -q 1").finish()
    tls, mqtt = captures
    wait_for(lambda: b"bonjour-ciel" in mqtt.bytes(), "message in the open", WAIT_S)
    wait_for(lambda: b"localhost" in tls.bytes() and b"\x17\x03\x03" in tls.bytes(), "TLS records", WAIT_S)
    for capture in captures:
        capture.end()
    assert tshark(mqtt.path, broker.port, broker.ports["port2"]) == [(broker.ports["port2"], "topic0", "bonjour-ciel")]
    assert tshark(tls.path, broker.port, broker.ports["port2"]) == []
    assert b"topic0" in mqtt.bytes() and b"topic0" not in tls.bytes() and b"bonjour" not in tls.bytes()


# Sheet 2

REFUSED = "Connection error: Connection Refused: (not authorised|bad user name or password)"
NO_TLS = "A TLS error occurred|[Cc]onnection was lost|Protocol error"

# require_certificate, use_identity_as_username, allow_anonymous: what one with a certificate sees, one without,
# and the user name of the first
COMBINATIONS = {
    (False, False, True): (None, None, None),
    (False, False, False): (REFUSED, REFUSED, None),
    (False, True, True): (REFUSED, REFUSED, None),
    (False, True, False): (REFUSED, REFUSED, None),
    (True, False, True): (None, NO_TLS, None),
    (True, False, False): (REFUSED, NO_TLS, None),
    (True, True, True): (None, NO_TLS, "eleve1"),
    (True, True, False): (None, NO_TLS, "eleve1"),
}


def combination(required, identity, anonymous):
    def word(value):
        return str(value).lower()
    return f"require_certificate {word(required)}\nuse_identity_as_username {word(identity)}\n" \
           f"allow_anonymous {word(anonymous)}\n"


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda o: "-".join(str(v).lower() for v in o))
def test_combinations(new_broker, client, lab, options):
    with_one, without, user = COMBINATIONS[options]
    broker = new_broker(config="listener {port}\n" + files(lab) + combination(*options), args=["-v"])
    for line, seen in ((with_certificate(lab, "eleve1"), with_one), (without_certificate(lab), without)):
        program = client(f"pub -i c -p {broker.port} {line} -t ciel -m hello -q 1")
        if seen is None:
            program.finish()
        else:
            program.take(seen)
            assert program.process.wait(WAIT_S) != 0
    if with_one is None:
        shown = rf", u'{user}'" if user else ""
        broker.wait_log(rf"New client connected from \S+ as c \(p2, c1, k60{shown}\)\.$")
    if without == NO_TLS:
        broker.wait_log(r"TLS handshake with \S+ on port \d+ failed: refused by us: the client sent no certificate, "
                        r"which require_certificate demands; give it one \(mosquitto_sub --cert and --key\)\.$")


@pytest.fixture
def school(new_broker, lab, tmp_path):
    """The broker of sheet 2: the certificate is the login, and rules say who may do what."""
    (tmp_path / "rules").write_text("user eleve1\ntopic readwrite ciel\ntopic read news\n"
                                    "user eleve2\ntopic read ciel\ntopic write news\n")
    return new_broker(config="listener {port}\n" + files(lab) + combination(True, True, False)
                      + f"acl_file {tmp_path}/rules\n", args=["-v"])


def test_rules_apply_to_the_common_name(school, client, lab):
    lines = {name: f"-p {school.port} {with_certificate(lab, name)}" for name in ("eleve1", "eleve2")}
    reader = client(f"sub -i reader {lines['eleve2']} -t ciel -C 2 -d")
    school.wait_log("Sending SUBACK to reader$", timeout=WAIT_S)
    client(f"pub {lines['eleve1']} -t ciel -m one -q 1").finish()
    client(f"pub {lines['eleve2']} -t ciel -m forged -q 1").finish()
    # nor does a name in the CONNECT help
    client(f"pub {lines['eleve2']} -u eleve1 -P x -t ciel -m forged -q 1").finish()
    client(f"pub {lines['eleve1']} -t ciel -m two -q 1").finish()
    reader.process.wait(WAIT_S)
    output = reader.output.decode().splitlines()
    assert "one" in output and "two" in output and "forged" not in output
    school.wait_log(r"Denied PUBLISH from .*'ciel'")
    assert "Client reader received CONNACK (0)" in output


def test_mqttx(school, mqttjs, client, lab):
    """MQTTX's engine, MQTT 5 over TLS with a pupil's certificate, beside mosquitto_sub on topic ciel."""
    pupil = mqttjs(MQTTX, school, protocol="mqtts", host="localhost", rejectUnauthorized=True,
                   ca=(lab / "ca.crt").read_text(), cert=(lab / "eleve1.crt").read_text(),
                   key=(lab / "eleve1.key").read_text())
    pupil.subscribe("ciel", qos=1)
    reader = client(f"sub -i reader -p {school.port} {with_certificate(lab, 'eleve2')} -t ciel -C 1")
    school.wait_log("Sending SUBACK to reader$", timeout=WAIT_S)
    pupil.publish("ciel", "bonjour", qos=1)
    assert pupil.message()["payload"] == "bonjour"
    assert reader.finish() == ["bonjour"]
    school.wait_log(rf"New client connected from \S+ as {pupil.id} \(p5, c1, k60, u'eleve1'\)\.$")


def expired(lab, folder):
    """A certificate of eleve1 whose time is over, by the same CA."""
    (folder / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=x\n[x]\ndatabase={folder}/index.txt\nnew_certs_dir={folder}\nserial={folder}/serial\n"
        "policy=p\ndefault_md=sha256\n[p]\ncommonName=supplied\ncountryName=optional\norganizationName=optional\n")
    (folder / "index.txt").write_text("")
    (folder / "serial").write_text("99\n")
    subprocess.run(["openssl", "ca", "-batch", "-config", folder / "ca.cnf", "-cert", "ca.crt", "-keyfile", "ca.key",
                    "-passin", "pass:teacher", "-in", "eleve1.csr", "-out", folder / "old.crt", "-notext",
                    "-startdate", "20240101000000Z", "-enddate", "20250101000000Z"], cwd=lab, check=True,
                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return folder / "old.crt"


@pytest.mark.parametrize("case", ["wrong CA", "expired", "none", "broker not trusted", "plain"])
def test_refused_with_the_right_sentence(school, client, lab, tmp_path, case):
    """What the pupil did wrong stands in the log, in words."""
    line, said = {
        "wrong CA": (f"--cafile {lab}/ca.crt --cert {lab}/stranger.crt --key {lab}/stranger.key",
                     r'refused by us, certificate "eleve1": it was issued by "Other school", which cafile and capath '
                     r"do not have"),
        "expired": (f"--cafile {lab}/ca.crt --cert {expired(lab, tmp_path)} --key {lab}/eleve1.key",
                    r'refused by us: the certificate "eleve1" has expired on 2025-01-01; it must be made anew\.$'),
        "none": (f"--cafile {lab}/ca.crt", r"refused by us: the client sent no certificate"),
        "broker not trusted": (f"--cafile {lab}/other.crt --cert {lab}/eleve1.crt --key {lab}/eleve1.key",
                               r"refused by the client: it does not trust the CA of our certificate; give it the CA's "
                               r"file \(mosquitto_sub --cafile\)\.$"),
        "plain": ("", r"refused by us: MQTT without TLS came to a TLS port"),
    }[case]
    program = client(f"sub -h localhost -p {school.port} {line} -t ciel -C 1")
    school.wait_log(rf"TLS handshake with \S+:\d+ on port {school.port} failed: {said}", timeout=WAIT_S)
    program.kill()
    assert "New client connected" not in school.log()


def test_debug_output(school, client, lab):
    """mosquitto_sub -d, as the sheet shows it."""
    reader = client(f"sub -i reader -p {school.port} {with_certificate(lab, 'eleve1')} -t ciel -d -C 1")
    school.wait_log("Sending SUBACK to reader$", timeout=WAIT_S)
    client(f"pub -p {school.port} {with_certificate(lab, 'eleve1')} -t ciel -m hello").finish()
    for line in ("Client reader sending CONNECT", r"Client reader received CONNACK \(0\)",
                 "Client reader sending SUBSCRIBE", "Client reader received SUBACK", r"Subscribed \(mid: 1\): 0",
                 "Client reader received PUBLISH", "^hello$"):
        reader.take(line)
    reader.finish()
