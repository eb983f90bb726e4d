"""The TLS rows of bench.py: handshakes, bulk, idle connections. The client is
Python's ssl, with TLS 1.2 for both brokers."""
import os
import socket
import ssl
import struct
import subprocess
import time

SUITES = {"AES-GCM": "ECDHE+AESGCM", "ChaCha20": "ECDHE+CHACHA20"}


def openssl(directory, *words):
    subprocess.run(["openssl", *words], cwd=directory, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_certificates(directory):
    """A CA, a certificate for localhost with RSA and one with EC, a client."""
    def key(name, *how):
        openssl(directory, "genpkey", *how, "-out", f"{name}.key")
        os.chmod(os.path.join(directory, f"{name}.key"), 0o644)

    ec = "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"
    rsa = "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"
    key("ca", *ec)
    openssl(directory, "req", "-new", "-x509", "-key", "ca.key", "-days", "9",
            "-subj", "/CN=CA", "-out", "ca.crt")
    for name, how in ("rsa", rsa), ("ec", ec), ("client", ec):
        key(name, *how)
        openssl(directory, "req", "-new", "-key", f"{name}.key", "-subj",
                f"/CN={name}", "-out", f"{name}.csr")
        openssl(directory, "x509", "-req", "-in", f"{name}.csr", "-CA",
                "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "9",
                "-out", f"{name}.crt")


def config(directory, port, key, client=False):
    path = os.path.join(directory, "")
    return (f"listener {port} 127.0.0.1\ncertfile {path}{key}.crt\n"
            f"keyfile {path}{key}.key\ncafile {path}ca.crt\n" +
            ("require_certificate true\n" if client else ""))


def context(directory, client=False, ciphers=None):
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    c.check_hostname = False
    c.load_verify_locations(os.path.join(directory, "ca.crt"))
    c.maximum_version = ssl.TLSVersion.TLSv1_2
    if client:
        c.load_cert_chain(os.path.join(directory, "client.crt"),
                          os.path.join(directory, "client.key"))
    if ciphers:
        c.set_ciphers(ciphers)
    return c


def dial(c, port, session=None):
    s = c.wrap_socket(socket.create_connection(("127.0.0.1", port)),
                      session=session)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def packet(first, body):
    n, size = len(body), b""
    while True:
        size += bytes([n & 127 | (128 if n > 127 else 0)])
        n >>= 7
        if not n:
            return bytes([first]) + size + body


def string(s):
    return struct.pack(">H", len(s)) + s


def connect(s, name):
    s.sendall(packet(0x10, string(b"MQTT") + b"\4\2\0\0" + string(name)))
    assert s.recv(4) == b" \2\0\0"


def handshakes(broker, directory, port, client, resumed, n):
    """CPU us of the broker per handshake."""
    c = context(directory, client)
    first = dial(c, port)
    connect(first, b"first")
    session = first.session
    before = broker.cpu_us()
    for _ in range(n):
        s = dial(c, port, session if resumed else None)
        assert s.session_reused == resumed
        s.close()
    time.sleep(.1)
    return (broker.cpu_us() - before) / n


def exchange(s):
    s.sendall(b"\xc0\0")
    assert s.recv(2) == b"\xd0\0"


def bulk_in(broker, directory, port, ciphers, size, n):
    """CPU us per publish that nobody gets."""
    s = dial(context(directory, ciphers=ciphers), port)
    connect(s, b"in")
    exchange(s)
    data = packet(0x30, string(b"bulk") + bytes(size))
    batch = data * max(1, 65536 // len(data))
    before = broker.cpu_us()
    for _ in range(n * len(data) // len(batch)):
        s.sendall(batch)
    exchange(s)
    return (broker.cpu_us() - before) / (n * len(data) // len(batch) *
                                         (len(batch) // len(data)))


def bulk_out(broker, directory, port, plain_port, ciphers, size, n):
    """CPU us per message from a plain publisher to a subscriber with TLS."""
    s = dial(context(directory, ciphers=ciphers), port)
    connect(s, b"out")
    s.sendall(packet(0x82, b"\0\1" + string(b"bulk") + b"\0"))
    assert s.recv(5) == b"\x90\3\0\1\0"
    p = socket.create_connection(("127.0.0.1", plain_port))
    connect(p, b"pub")
    data = packet(0x30, string(b"bulk") + bytes(size))
    before = broker.cpu_us()
    step = max(1, 131072 // len(data))
    for _ in range(n // step):
        p.sendall(data * step)
        left = len(data) * step
        while left:
            left -= len(s.recv(min(left, 65536)))
    return (broker.cpu_us() - before) / (n // step * step)


def idle(broker, directory, port, client, n):
    """Resident bytes per connection."""
    c = context(directory, client)
    held = []
    for i in range(20 + n):     # the first ones pay for what all share
        if i == 20:
            before = broker.rss()
        held.append(dial(c, port))
        connect(held[-1], b"idle%d" % i)
    time.sleep(.5)
    grown = broker.rss() - before
    for s in held:
        s.close()
    return grown / n
