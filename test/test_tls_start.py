"""TLS before the first connection: what is wrong with the broker's own files and options is said in one
sentence each, with the remedy. Exit code 3 for the configuration, 1 for what its files hold."""

import os
import re

import pytest

from tls import ANYBODY, CA, SERVER, exchange, listener, make_key, mutual, openssl, refused, stamp, trusting

KEY = r'Error: Unable to load server key file "\S+"\. Check keyfile: '
CERT = r'Error: Unable to load server certificate "\S+"\. Check certfile: '
CAFILE = r'Error: Unable to load CA certificates\. Check cafile "\S+": '
CAPATH = r'Error: Unable to load CA certificates\. Check capath "\S+": '
CRLFILE = r'Error: Unable to load certificate revocation file "\S+"\. Check crlfile: '
PAIR = r'Error: Server key "\S+" and certificate "\S+" do not go together: '
ENCRYPTED = r"the key is encrypted and a broker cannot ask for the password; 'openssl pkey -in FILE -out NEW' writes " \
            r"it without one\."
KEY_TYPE = r"keys of this type are not supported; RSA \(2048 to 4096 bits\) and EC \(P-256, P-384, P-521\) are\."
LISTENER = r"Error: Listener on port \d+: "
NO_FILE = r"No such file or directory\."
NO_KEY = r"it holds no private key in PEM form \(a DER file is turned into one by 'openssl pkey -inform DER'\)\."
NO_CERT = r"it holds no certificate in PEM form \(a DER file is turned into one by 'openssl x509 -inform DER'\)\."


class Files:
    """Copies of good files that a case spoils; lines() is the configuration with them."""

    def __init__(self, pki, dir):
        self.pki, self.dir = pki, dir
        pair = pki.server()
        self.files = {"certfile": pair.cert, "keyfile": pair.key}
        self.more = []

    def put(self, option, content):
        path = str(self.dir / option)
        with open(path, "wb") as f:
            f.write(content)
        self.files[option] = path

    def read(self, option):
        with open(self.files[option], "rb") as f:
            return f.read()

    def openssl(self, option, *words):
        """Turns the file into what openssl(1) makes of it."""
        self.put(option, openssl(*words, "-in", self.files[option]))

    def lines(self):
        return "listener {port} 127.0.0.1\n" + "".join(f"{k} {v}\n" for k, v in self.files.items()) + \
            "".join(line + "\n" for line in self.more) + ANYBODY


def option(name, value):
    return lambda f: f.files.update({name: value})


def put(name, content):
    return lambda f: f.put(name, content)


def line(*lines):
    return lambda f: f.more.extend(lines)


def without(name):
    return lambda f: f.files.pop(name)


def key_of(kind, certify=False):
    def change(f):
        f.files["keyfile"] = make_key(str(f.dir / "new.key"), kind)
        if certify:
            f.files["certfile"] = f.pki.ca.issue("localhost", f.files["keyfile"], SERVER).cert
    return change


def old_encryption(f):
    f.openssl("keyfile", "ec", "-aes128", "-passout", "pass:secret")
    assert b"Proc-Type: 4,ENCRYPTED" in f.read("keyfile")


def new_encryption(f):
    f.openssl("keyfile", "pkcs8", "-topk8", "-passout", "pass:secret")
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in f.read("keyfile")


def damage(name):
    """The middle of the base64 text is changed."""
    def change(f):
        text = f.read(name)
        at = text.index(b"\n") + 20
        f.put(name, text[:at] + b"!!!!" + text[at + 4:])
    return change


def cut(name):
    """The file ends before its time."""
    def change(f):
        f.put(name, f.read(name)[:-60])
    return change


def both(*changes):
    def change(f):
        for one in changes:
            one(f)
    return change


def ca_of(make):
    def change(f):
        f.files["cafile"] = make(f.pki).cert
        f.more.append("require_certificate true")
    return change


def folder_as(name):
    def change(f):
        f.files[name] = str(f.dir)
    return change


def der(name, *words):
    def change(f):
        f.openssl(name, *words, "-outform", "DER")
    return change


# how it is spoilt, exit code, what is said
BROKEN = {
    "key encrypted, new form": (new_encryption, 1, KEY + ENCRYPTED),
    "key encrypted, old form": (old_encryption, 1, KEY + ENCRYPTED),
    "key of another": (key_of("P-256"), 1, PAIR + r"the key does not belong to the certificate; 'openssl pkey -in KEY "
                       r"-pubout' and 'openssl x509 -in CERT -noout -pubkey' must print the same\."),
    "key of another type": (key_of("rsa2048"), 1, PAIR + "the key does not belong to the certificate"),
    "key of another curve": (key_of("P-384"), 1, PAIR + "the key does not belong to the certificate"),
    "Ed25519": (key_of("ed25519", True), 1, KEY + KEY_TYPE),
    "X25519": (key_of("x25519"), 1, KEY + KEY_TYPE),
    "RSA-1024": (key_of("rsa1024", True), 1, KEY + r"RSA keys of 1024 bits are not supported, 2048 to 4096 are\."),
    "key in DER": (der("keyfile", "pkey"), 1, KEY + NO_KEY),
    "key empty": (put("keyfile", b""), 1, KEY + NO_KEY),
    "certificate as key": (lambda f: f.files.update(keyfile=f.files["certfile"]), 1, KEY + NO_KEY),
    "public key": (lambda f: f.openssl("keyfile", "pkey", "-pubout"), 1, KEY + NO_KEY),
    "key damaged": (damage("keyfile"), 1, KEY + r'the part "PRIVATE KEY" is damaged\.'),
    "key cut": (cut("keyfile"), 1, KEY),
    "key missing": (option("keyfile", "/nonexistent/key"), 1, KEY + NO_FILE),
    "key is a folder": (folder_as("keyfile"), 1, KEY + r"it is not a file\."),
    "key is a device": (option("keyfile", "/dev/zero"), 1, KEY + r"it is not a file\."),
    "certificate in DER": (der("certfile", "x509"), 1, CERT + NO_CERT),
    "key as certificate": (lambda f: f.files.update(certfile=f.files["keyfile"]), 1, CERT + NO_CERT),
    "certificate damaged": (damage("certfile"), 1, CERT + r'the part "CERTIFICATE" is damaged\.'),
    "certificate of nonsense": (put("certfile", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 1,
                                CERT + r"certificate 1 is damaged\."),
    "certificate missing": (option("certfile", "/nonexistent/crt"), 1, CERT + NO_FILE),
    "certificate is a folder": (folder_as("certfile"), 1, CERT + r"it is not a file\."),
    "file too large": (lambda f: f.put("certfile", b"x" * (17 << 20)), 1, CERT + r"it is larger than 16 MB\."),
    "CA missing": (option("cafile", "/nonexistent/ca"), 1, CAFILE + NO_FILE),
    "CA in DER": (both(option("cafile", None), lambda f: f.files.update(cafile=f.pki.ca.cert),
                       der("cafile", "x509")), 1, CAFILE + NO_CERT),
    "CA empty": (put("cafile", b"# none yet\n"), 1, CAFILE + NO_CERT),
    "CA with Ed25519": (ca_of(lambda pki: pki.authority("Odd", key="ed25519")), 1,
                        r'Error: Unable to load CA certificates of \S+: certificate "Odd": its public key is of a type '
                        r"that is not supported; RSA and EC \(P-256, P-384, P-521\) are\."),
    "capath missing": (option("capath", "/nonexistent"), 1, CAPATH + NO_FILE),
    "capath empty": (lambda f: (os.mkdir(f.dir / "cas"), f.files.update(capath=f.dir / "cas")), 1,
                     CAPATH + r"it holds no \.crt or \.pem file\."),
    "crlfile missing": (both(ca_of(lambda pki: pki.ca), option("crlfile", "/nonexistent")), 1, CRLFILE + NO_FILE),
    "crlfile empty": (both(ca_of(lambda pki: pki.ca), put("crlfile", b"")), 1,
                      CRLFILE + r"it holds no revocation list in PEM form\."),
    "crlfile of nonsense": (both(ca_of(lambda pki: pki.ca),
                                 put("crlfile", b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n")), 1,
                            CRLFILE + r"list 1 is damaged\."),
    "certfile alone": (without("keyfile"), 3, LISTENER + r"certfile and keyfile must both be given\."),
    "keyfile alone": (without("certfile"), 3, LISTENER + r"certfile and keyfile must both be given\."),
    "cafile alone": (both(without("certfile"), without("keyfile"), lambda f: f.files.update(cafile=f.pki.ca.cert)), 3,
                     LISTENER + r"cafile and capath alone do not make TLS: certfile and keyfile are missing\."),
    "require_certificate without cafile": (line("require_certificate true"), 3,
                                           LISTENER + r"require_certificate needs cafile or capath\."),
    "ciphers without TLS": (both(without("certfile"), without("keyfile"), line("ciphers HIGH")), 3,
                            LISTENER + r"require_certificate, crlfile and ciphers are for listeners with TLS: certfile "
                            r"and keyfile are missing\."),
    "ciphers: none known": (line("ciphers AES128-SHA:RC4-MD5"), 1,
                            r"Error: ciphers: none of 'AES128-SHA:RC4-MD5' is known to midge\. It has:"),
    "ciphers: none for the key": (line("ciphers ECDHE-RSA-AES128-GCM-SHA256"), 1,
                                  r"Error: ciphers: none of 'ECDHE-RSA-AES128-GCM-SHA256' goes with the key \S+; names "
                                  r"that begin with ECDHE-ECDSA- do\."),
    "TLS 1.3": (line("tls_version tlsv1.3"), 3,
                r"Error: Invalid tls_version value 'tlsv1\.3': midge has TLS 1\.2 and no 1\.3; clients that can do "
                r"both agree on 1\.2 by themselves, so write tlsv1\.2 or leave the line out\."),
    "SSL 3": (line("tls_version sslv3"), 3, r"Error: Invalid tls_version value 'sslv3': it must be tlsv1\.2\."),
    "engine": (line("tls_engine pkcs11"), 3, "tls_engine"),
    "key in an engine": (line("tls_keyform engine"), 3, r"Error: Invalid tls_keyform value 'engine': keys are read "
                         r"from PEM files only\."),
    "PSK": (line("psk_hint lab"), 3, "psk_hint"),
    "certfile twice": (line("certfile /other"), 3, "certfile"),
    "require_certificate maybe": (line("require_certificate maybe"), 3,
                                  r"Error: Invalid require_certificate value 'maybe': it must be true or false\."),
}


@pytest.mark.parametrize("case", BROKEN)
def test_does_not_start(new_broker, pki, tmp_path, case):
    spoil, code, said = BROKEN[case]
    files = Files(pki, tmp_path)
    spoil(files)
    broker = new_broker(config=files.lines(), start=False)
    assert broker.run()[0] == code, broker.log()
    assert re.search(r"^\d+: " + said if said.startswith("Error") else said, broker.log(), re.M), broker.log()
    assert "running" not in broker.log()
    if code == 3 and "Listener on port" not in said:
        assert re.search(r"Error found at \S+:\d+\.$", broker.log(), re.M), broker.log()


def day(days):
    return re.sub(r"(....)(..)(..).*", r"\1-\2-\3", stamp(days))


def client_ca(name, **options):
    return lambda pki: mutual(pki.server(), cafile=pki.authority(name, **options).cert)


# what works, but not as somebody may think
DOUBTFUL = {
    "expired": (lambda pki: listener(pki.ca.issue("localhost", extensions=SERVER, days=(-30, -2))),
                rf"Warning: The certificate \S+ has expired on {day(-2)}: clients will refuse it\. Make a new one and "
                r"send SIGHUP\."),
    "not yet valid": (lambda pki: listener(pki.ca.issue("localhost", extensions=SERVER, days=(2, 300))),
                      rf"Warning: The certificate \S+ is valid from {day(2)} on only: clients will refuse it until "
                      r"then, or the clock of this machine is wrong\."),
    "for clients": (lambda pki: listener(pki.ca.issue("localhost", extensions="extendedKeyUsage=clientAuth")),
                    r"Warning: The certificate \S+ is not meant for servers \(extendedKeyUsage\): clients will refuse "
                    r"it\."),
    "same subject as its CA": (lambda pki: mutual(pki.ca.issue("Lab CA")),
                               r"Warning: The certificate \S+ has the same subject as its CA: OpenSSL takes it for "
                               r"self-signed and refuses it\. Give the broker's certificate another Common Name\."),
    "no CA": (client_ca("No CA", extensions="basicConstraints=CA:FALSE"),
              r'Warning: The certificate "No CA" in cafile or capath is not that of a CA \(no basicConstraints '
              r"CA:TRUE\): it lets in that very certificate only\."),
    "expired CA": (client_ca("Old CA", days=(-30, -2)),
                   rf'Warning: The CA certificate "Old CA" has expired on {day(-2)}: certificates that it signed are '
                   r"refused\."),
    "TLS 1.1": (lambda pki: listener(pki.server(), "tls_version tlsv1.1"),
                r"Warning: tls_version tlsv1\.1: midge speaks TLS 1\.2 and nothing older, at \S+:\d+\."),
    "names without certificates": (lambda pki: listener(pki.server(), "use_identity_as_username true"),
                                   r"Warning: Listener on port \d+: user names are to come from certificates, but "
                                   r"without require_certificate true no client is asked for one, and all are "
                                   r"refused\."),
    "TLS 1.3 ciphers": (lambda pki: listener(pki.server(), "ciphers_tls1.3 TLS_AES_128_GCM_SHA256"), "ciphers_tls1.3"),
    "dhparamfile": (lambda pki: listener(pki.server(), "dhparamfile /x"), "dhparamfile"),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_starts_with_a_warning(new_broker, pki, case):
    config, said = DOUBTFUL[case]
    broker = new_broker(config=config(pki) + ANYBODY)
    broker.wait_log(said)
    assert broker.log().count("Warning: ") == 1, broker.log()


@pytest.mark.parametrize("lines", [
    ("tls_version tlsv1.2",), ("tls_keyform pem",), ("ciphers HIGH:!aNULL:!MD5",), ("ciphers DEFAULT",),
    ("ciphers ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256",),
    ("disable_client_cert_date_checks true",),
])
def test_starts(new_broker, connect, pki, lines):
    broker = new_broker(config=listener(pki.server(), *lines) + ANYBODY)
    exchange(connect, broker, trusting(pki.ca))


def test_no_warning_for_a_good_one(new_broker, pki):
    broker = new_broker(config=mutual(pki.server()) + ANYBODY)
    assert "Warning" not in broker.log()


def test_self_signed(new_broker, connect, pki):
    """The simplest way: one certificate that is its own CA."""
    own = pki.authority("localhost", extensions=f"{CA}\n{SERVER}")
    broker = new_broker(config=listener(own) + ANYBODY)
    exchange(connect, broker, trusting(own))


def test_lines_of_another_listener(new_broker, connect, pki):
    """Options of TLS belong to the listener above them."""
    a, b = pki.server(), pki.other_ca.issue("localhost", extensions=SERVER)
    broker = new_broker(config=listener(a) + mutual(b, port="port2") + "listener {port3} 127.0.0.1\n" + ANYBODY)
    exchange(connect, broker, trusting(pki.ca))
    exchange(connect, broker, trusting(pki.other_ca, pki.other_ca.issue("pupil")),
             address=("127.0.0.1", broker.ports["port2"]))
    exchange(connect, broker, None, address=("127.0.0.1", broker.ports["port3"]))
    assert refused(broker, trusting(pki.other_ca), "port2")
