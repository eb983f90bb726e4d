"""TLS for the tests: certificates by openssl(1), contexts of Python's ssl, words of the log.

  Pki         authorities and what they issue, each made once, when it is first asked for
  Authority   a CA of its own: issue() and crl()
  listener    the lines of a listener with TLS
  trusting    an ssl.SSLContext of a client
  refused     a handshake that must fail; what the client saw
"""

import contextlib
import datetime
import functools
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import unittest

from wire import ROOT, command

# One of our own certificates: for these names, as a test connects to them.
SERVER = "subjectAltName=DNS:localhost,IP:127.0.0.1"

# Extensions as cross-signing tools write them; none at all gives an X.509 v1 certificate.
CLIENT = "extendedKeyUsage=clientAuth"
CA = "basicConstraints=critical,CA:TRUE"

CURVES = {"P-256": "prime256v1", "P-384": "secp384r1", "P-521": "secp521r1"}

REQUEST = """[req]
distinguished_name = name
string_mask = {mask}
utf8 = yes
[name]
"""

AUTHORITY = """[ca]
default_ca = this
[this]
database = {dir}/index.txt
new_certs_dir = {dir}
crlnumber = {dir}/crlnumber
rand_serial = yes
unique_subject = no
policy = any
default_md = sha256
[any]
commonName = optional
"""


def openssl(*words, input=None):
    """Runs openssl(1), which must succeed; returns its output."""
    done = subprocess.run(["openssl", *words], input=input, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, f"openssl {' '.join(words)}:\n{done.stderr.decode(errors='replace')}"
    return done.stdout


def make_key(path, kind="P-256"):
    """A private key in a file of its own: a curve, "rsa2048" and so on, or "ed25519"."""
    if kind in CURVES:
        options = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:" + CURVES[kind]]
    elif kind.startswith("rsa"):
        options = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:" + kind[3:]]
    else:
        options = ["-algorithm", kind]
    openssl("genpkey", *options, "-out", path)
    return path


class Pair:
    """A certificate and its key, both paths; issuer is the Authority that signed it."""

    def __init__(self, cert, key, issuer):
        self.cert, self.key, self.issuer = cert, key, issuer

    def pem(self):
        with open(self.cert) as f:
            return f.read()


class Authority(Pair):
    """A CA with a directory of its own; without a parent it signs itself."""

    def __init__(self, dir, name, parent=None, key="P-256", extensions=CA, days=(-1, 365), md="sha256"):
        self.dir = dir
        self.name = name
        os.mkdir(dir)
        with open(os.path.join(dir, "ca.cnf"), "w") as f:
            f.write(AUTHORITY.format(dir=dir))
        open(os.path.join(dir, "index.txt"), "w").close()
        with open(os.path.join(dir, "crlnumber"), "w") as f:
            f.write("01\n")
        key = make_key(os.path.join(dir, "ca.key"), key)
        super().__init__(os.path.join(dir, "ca.crt"), key, parent or self)
        self.issuer._sign(key, f"/CN={name}", extensions, days, md, "utf8only", self.cert)
        self._issued = 0

    def issue(self, subject, key="P-256", extensions="", days=(-1, 365), md="sha256", mask="utf8only", options=()):
        """A new certificate. subject is a CN or, with /, a whole name as openssl req takes it; key a
        kind of key or the path of one; days from today. Without extensions it is one of X.509 v1.
        mask chooses the type of the strings, options are more words for openssl ca."""
        self._issued += 1
        stem = os.path.join(self.dir, str(self._issued))
        path = key if os.path.sep in key else make_key(stem + ".key", key)
        self._sign(path, subject if subject.startswith("/") else f"/CN={subject}", extensions, days, md, mask,
                   stem + ".crt", options)
        return Pair(stem + ".crt", path, self)

    def _sign(self, key, subject, extensions, days, md, mask, out, options=()):
        request = os.path.join(self.dir, "request.cnf")
        with open(request, "w") as f:
            f.write(REQUEST.format(mask=mask))
        csr = out + ".csr"
        openssl("req", "-new", "-config", request, "-utf8", "-key", key, "-subj", subject, "-out", csr)
        options = [*options, *(["-selfsign"] if out == self.cert else ["-cert", self.cert])]
        if extensions:
            with open(out + ".ext", "w") as f:
                f.write(extensions + "\n")
            options += ["-extfile", out + ".ext"]
        openssl("ca", "-config", os.path.join(self.dir, "ca.cnf"), "-keyfile", self.key, "-in", csr, "-out", out,
                "-batch", "-notext", "-preserveDN", "-md", md, "-startdate", stamp(days[0]),
                "-enddate", stamp(days[1]), *options)

    def revoke(self, pair):
        openssl("ca", "-config", os.path.join(self.dir, "ca.cnf"), "-keyfile", self.key, "-cert", self.cert,
                "-revoke", pair.cert)

    def crl(self, path, days=(-1, 30)):
        """Writes the list of what is revoked."""
        openssl("ca", "-config", os.path.join(self.dir, "ca.cnf"), "-keyfile", self.key, "-cert", self.cert,
                "-gencrl", "-crl_lastupdate", stamp(days[0]), "-crl_nextupdate", stamp(days[1]), "-out", path)
        return path


def stamp(days):
    """A date so many days from now, as openssl(1) takes it."""
    at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
    return at.strftime("%Y%m%d%H%M%SZ")


class Pki:
    """What tests of a session share. New authorities are for the test that asks alone."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="midge-pki-")
        os.chmod(self.dir, 0o755)
        self._authorities = 0

    def cleanup(self):
        shutil.rmtree(self.dir, ignore_errors=True)

    def authority(self, name="Lab CA", **options):
        self._authorities += 1
        return Authority(os.path.join(self.dir, f"ca{self._authorities}"), name, **options)

    @functools.cached_property
    def ca(self):
        return self.authority()

    @functools.cached_property
    def other_ca(self):
        return self.authority("Other CA")

    @functools.lru_cache(maxsize=None)
    def server(self, key="P-256"):
        """A certificate of our CA for localhost."""
        return self.ca.issue("localhost", key, SERVER)

    @functools.lru_cache(maxsize=None)
    def client(self, name="pupil"):
        return self.ca.issue(name, extensions=CLIENT)


def listener(pair, *lines, port="port"):
    """Configuration of a listener with TLS on a free port."""
    return "".join(line + "\n" for line in (
        f"listener {{{port}}} 127.0.0.1", f"certfile {pair.cert}", f"keyfile {pair.key}", *lines))


def mutual(pair, *lines, cafile=None, port="port"):
    """The same, for clients with a certificate of the CA that signed the broker's."""
    return listener(pair, f"cafile {cafile or pair.issuer.cert}", "require_certificate true", *lines, port=port)


ANYBODY = "allow_anonymous true\n"

# For brokers that read their files again: started by root they would give up the rights that they need for
# the files of a test.
READS_AGAIN = ANYBODY + "user root\n"


def trusting(authority, pair=None, ciphers="DEFAULT@SECLEVEL=0"):
    """A client's context, with its certificate if it has one. SECLEVEL=0 lets it show weak ones."""
    context = ssl.create_default_context(cafile=authority.cert)
    context.set_ciphers(ciphers)
    if pair:
        context.load_cert_chain(pair.cert, pair.key)
    return context


@contextlib.contextmanager
def connection(broker, port="port"):
    """A TCP connection, closed at the end."""
    with socket.create_connection(("127.0.0.1", broker.ports[port]), timeout=10) as s:
        yield s


def refused(broker, context, port="port"):
    """A handshake that must fail: (OpenSSL's name of what the client saw, the log line's last part).

    The line has the client's address and the listener's port, and is the only one of its kind."""
    with connection(broker, port) as s:
        ours = s.getsockname()[1]
        try:
            with context.wrap_socket(s, server_hostname="localhost"):
                raise AssertionError("the handshake has succeeded")
        except ssl.SSLError as e:
            seen = e.reason
    return seen, refusal(broker, ours, port)


def refusal(broker, from_port, port="port", timeout=5):
    """What the log says about the handshake of the client with this port of its own."""
    line = rf"TLS handshake with 127\.0\.0\.1:{from_port} on port {broker.ports[port]} failed: (.*)\.$"
    return broker.wait_log(line, timeout=timeout).group(1)


def exchange(connect, broker, context, **options):
    """A client comes in and hears itself; returns it, still connected."""
    client = connect(broker=broker, context=context, **options)
    client.subscribe("own/" + client.id)
    client.publish("own/" + client.id, "hello")
    client.expect_publish("own/" + client.id, "hello")
    return client


def together(path, *pairs):
    """A file with several certificates; returns its path."""
    with open(path, "w") as f:
        f.write("".join(one.pem() for one in pairs))
    return str(path)


def preload(source, directory):
    """The environment that puts a file of test/ before the broker. Skips the test where nothing can be put
    before the program: it is static, or runs in an emulator."""
    words = command()
    with open(shutil.which(words[0]), "rb") as f:
        if len(words) > 1 or b"/ld-" not in f.read(4096):
            raise unittest.SkipTest("nothing can be put before this program")
    library = os.path.join(directory, source[:-2] + ".so")
    if not os.path.exists(library):
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, os.path.join(ROOT, "test", source)],
                       check=True)
    checks = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    return {"LD_PRELOAD": library, "ASAN_OPTIONS": checks}


def clock(pki, **settings):
    """The environment of a broker whose clock is another one, see clock.c: at=, speed=."""
    return {**preload("clock.c", pki.dir),
            **{"CLOCK_" + name.upper(): str(value) for name, value in settings.items()}}
