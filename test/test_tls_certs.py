"""Certificates of clients: which are let in, what the others are told and what the log says about them;
revocation lists, sessions that are resumed, and the user names that certificates give.

The rows follow what Mosquitto with OpenSSL accepts; where midge differs the row says so."""

import os
import re
import signal
import ssl
import subprocess

import pytest

from tls import ANYBODY, CLIENT, READS_AGAIN, connection, exchange, listener, mutual, openssl, refused, stamp, \
    together, trusting
from wire import V311, V5, password_line

UNKNOWN_CA = "TLSV1_ALERT_UNKNOWN_CA"
EXPIRED = "SSLV3_ALERT_CERTIFICATE_EXPIRED"
BAD = "SSLV3_ALERT_BAD_CERTIFICATE"
UNSUPPORTED = "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"
UNKNOWN = "SSLV3_ALERT_CERTIFICATE_UNKNOWN"
REVOKED = "SSLV3_ALERT_CERTIFICATE_REVOKED"
FAILURE = "SSLV3_ALERT_HANDSHAKE_FAILURE"

NO_CERTIFICATE = r"refused by us: the client sent no certificate, which require_certificate demands; give it one " \
                 r"\(mosquitto_sub --cert and --key\)"

PATH_0 = "basicConstraints=critical,CA:TRUE,pathlen:0"
NO_CA = "basicConstraints=CA:FALSE"
LONG = "subjectAltName=" + ",".join(f"DNS:{i}.{'x' * 50}.org" for i in range(300))


def day(days):
    """The date so many days from now as the log writes it."""
    return re.sub(r"(....)(..)(..).*", r"\1-\2-\3", stamp(days))


def accepted(certificate, broker):
    """The log line of a handshake in which this name was shown, whatever else is in it."""
    return broker.wait_log(r'TLS handshake with 127\.0\.0\.1:\d+ on port %d succeeded: TLSv1\.2 cipher \S+?, '
                           r'certificate "%s"\.$' % (broker.port, re.escape(certificate)))


@pytest.fixture
def school(pki, tmp_path):
    """A CA made for one test, and certificates that depend on more than it."""
    return School(pki, tmp_path)


class School:
    def __init__(self, pki, path):
        self.pki, self.path = pki, path
        self.ca = pki.ca
        self.cafile = pki.ca.cert

    def trusts(self, *pairs):
        """What cafile has instead of the CA that everything here begins with."""
        self.cafile = together(self.path / "cas.pem", *pairs)

    def sends(self, leaf, *others):
        """The leaf with more certificates behind it."""
        leaf.cert = together(self.path / "chain.pem", leaf, *others)
        return leaf

    def below(self, *names, **options):
        """A chain of authorities, the first below the CA; all of them."""
        found = [self.ca]
        for name in names:
            found.append(self.pki.authority(name, parent=found[-1], **options))
        return found[1:]


def rsa(school, bits=2048):
    return school.ca.issue("pupil", f"rsa{bits}", CLIENT)


def rsa_authority(school, md="sha512", options=()):
    ca = school.pki.authority("RSA CA", key="rsa2048")
    school.trusts(ca)
    return ca.issue("pupil", extensions=CLIENT, md=md, options=options)


def chain_sent(school):
    middle, low = school.below("Middle", "Low")
    return school.sends(low.issue("pupil", extensions=CLIENT), low, middle)


def chain_and_root_sent(school):
    middle, = school.below("Middle")
    return school.sends(middle.issue("pupil"), middle, school.ca)


def chain_known(school):
    middle, low = school.below("Middle", "Low")
    school.trusts(school.ca, middle, low)
    return low.issue("pupil")


def itself_trusted(school):
    pair = school.pki.authority("pupil", extensions=NO_CA)
    school.trusts(pair)
    return pair


def old_root(school):
    root = school.pki.authority("Old root", extensions="")
    school.trusts(root)
    return root.issue("pupil")


def second_of_two(school):
    school.trusts(school.pki.other_ca, school.ca)
    return school.ca.issue("pupil")


def same_name_twice(school):
    """Two authorities of one name, as after a renewal."""
    old = school.pki.authority("Lab CA", days=(-30, 1))
    school.trusts(old, school.ca)
    return school.ca.issue("pupil")


ACCEPTED = {
    "X.509 v1": lambda s: s.ca.issue("pupil"),
    "clientAuth": lambda s: s.ca.issue("pupil", extensions=CLIENT),
    "for clients and servers": lambda s: s.ca.issue("pupil", extensions="extendedKeyUsage=serverAuth,clientAuth"),
    "for any use": lambda s: s.ca.issue("pupil", extensions="extendedKeyUsage=anyExtendedKeyUsage"),
    "digitalSignature": lambda s: s.ca.issue("pupil", extensions="keyUsage=critical,digitalSignature"),
    "not a CA": lambda s: s.ca.issue("pupil", extensions=NO_CA),
    "unknown extension": lambda s: s.ca.issue("pupil", extensions="1.2.3.4=DER:0500"),
    "P-384": lambda s: s.ca.issue("pupil", "P-384"),
    "P-521": lambda s: s.ca.issue("pupil", "P-521"),
    "SHA-384": lambda s: s.ca.issue("pupil", md="sha384"),
    "SHA-512": lambda s: s.ca.issue("pupil", md="sha512"),
    "RSA-2048": rsa,
    "RSA-4096": lambda s: rsa(s, 4096),
    "RSA CA": rsa_authority,
    "20 kB": lambda s: s.ca.issue("pupil", extensions=LONG),
    "chain sent": chain_sent,
    "chain sent with its root": chain_and_root_sent,
    "chain in cafile": chain_known,
    "itself in cafile": itself_trusted,
    "v1 root": old_root,
    "second CA of cafile": second_of_two,
    "CAs of one name": same_name_twice,
    "path length 0": lambda s: chain_of_path_0(s)[1],
    "for ever": lambda s: s.ca.issue("pupil", days=(-1, 365 * 60)),
}


def chain_of_path_0(school):
    low, = school.below("Low", extensions=PATH_0)
    return low, school.sends(low.issue("pupil"), low)


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(new_broker, connect, pki, school, case):
    pair = ACCEPTED[case](school)
    broker = new_broker(config=mutual(pki.server(), cafile=school.cafile) + ANYBODY, args=["-v"])
    exchange(connect, broker, trusting(pki.ca, pair))
    accepted("pupil", broker)


def missing_middle(school):
    return school.below("Middle")[0].issue("pupil")


def forged(school):
    """As after the CA was made anew, under its old name; the client sends the new CA along."""
    return school.pki.authority("Lab CA").issue("pupil")


def wrong_order(school):
    middle, low = school.below("Middle", "Low")
    return school.sends(low.issue("pupil"), middle, low)


def issued_by_pupil(school):
    pupil, = school.below("pupil", extensions=NO_CA)
    return school.sends(pupil.issue("friend"), pupil)


def too_deep(school):
    low, _ = chain_of_path_0(school)
    lower = school.pki.authority("Lower", parent=low)
    return school.sends(lower.issue("pupil"), lower, low)


def expired_ca(school):
    ca = school.pki.authority("Old CA", days=(-30, -2))
    school.trusts(ca)
    return ca.issue("pupil")


def expired_middle(school):
    middle, = school.below("Middle", days=(-30, -2))
    return school.sends(middle.issue("pupil"), middle)


def many(school):
    authorities = school.below(*(f"CA {i}" for i in range(10)))
    return school.sends(authorities[-1].issue("pupil"), *authorities[::-1])


def no_ca_in_cafile(school):
    ca = school.pki.authority("No CA", extensions=NO_CA)
    school.trusts(ca)
    return ca.issue("pupil")


ISSUED_BY = r'refused by us, certificate "%s": it was issued by "%s", which cafile and capath do not have \(or they ' \
            r'have another CA of that name\); use a certificate of a CA in there, or add the CA\'s certificate$'
WEAK_SIGNATURE = r'refused by us, certificate "pupil": it is signed with SHA-1, MD5 or RSA-PSS; sign it anew with ' \
                 r"'openssl x509 -sha256'$"
NOT_FOR_CLIENTS = r'refused by us: the certificate "pupil" is not meant for clients ' \
                  r"\(extendedKeyUsage has no clientAuth\)$"
IS_NO_CA = r'refused by us, certificate "%s": "%s" is not allowed to issue certificates \(basicConstraints\)$'
TOO_MUCH = r"refused by us: it sent more than 10 certificates or one of more than 32768 bytes$"
CRITICAL = r'refused by us, certificate "pupil": it has a critical extension that is not known here$'

# what the client has, what it sees, what the log says
REFUSED = {
    "none": (lambda s: None, FAILURE, NO_CERTIFICATE),
    "expired": (lambda s: s.ca.issue("pupil", days=(-30, -2)), EXPIRED,
                rf'refused by us: the certificate "pupil" has expired on {day(-2)}; it must be made anew$'),
    "not yet valid": (lambda s: s.ca.issue("pupil", days=(2, 30)), BAD,
                      rf'refused by us: the certificate "pupil" is valid from {day(2)} on only, or the clock of this '
                      r'machine is late$'),
    "expired before 1970": (lambda s: s.ca.issue("pupil", days=(-40_000, -21_000)), EXPIRED,
                            r'refused by us: the certificate "pupil" has expired on 19\d\d-'),
    "self-signed": (lambda s: s.pki.authority("pupil", extensions=NO_CA), UNKNOWN_CA, ISSUED_BY % ("pupil", "pupil")),
    "other CA": (lambda s: s.pki.other_ca.issue("pupil"), UNKNOWN_CA, ISSUED_BY % ("pupil", "Other CA")),
    "missing intermediate": (missing_middle, UNKNOWN_CA, ISSUED_BY % ("pupil", "Middle")),
    "forged issuer": (forged, UNKNOWN_CA, ISSUED_BY % ("pupil", "Lab CA")),
    "wrong order": (wrong_order, BAD,
                    r'refused by us, certificate "pupil": the certificates that the client sent are in the wrong '
                    r"order$"),
    "issuer is no CA": (issued_by_pupil, BAD, IS_NO_CA % ("friend", "pupil")),
    "path too long": (too_deep, BAD, IS_NO_CA % ("pupil", "Low")),
    "not for signing": (lambda s: s.ca.issue("pupil", extensions="keyUsage=critical,keyAgreement"), UNSUPPORTED,
                        r'refused by us, certificate "pupil": its key may not be used for signing \(keyUsage\)$'),
    "MD5": (lambda s: rsa_authority(s, "md5"), BAD, WEAK_SIGNATURE),
    "SHA-1": (lambda s: s.ca.issue("pupil", md="sha1"), BAD, WEAK_SIGNATURE),
    "RSA-1024": (lambda s: rsa(s, 1024), BAD,
                 r'refused by us, certificate "pupil": its RSA key is shorter than 2048 bits; make a new one$'),
    "for servers": (lambda s: s.ca.issue("pupil", extensions="extendedKeyUsage=serverAuth"), UNSUPPORTED,
                    NOT_FOR_CLIENTS),
    "for mail": (lambda s: s.ca.issue("pupil", extensions="extendedKeyUsage=emailProtection"), UNSUPPORTED,
                 NOT_FOR_CLIENTS),
    "expired CA": (expired_ca, EXPIRED,
                   rf'refused by us: the certificate "Old CA" has expired on {day(-2)}; it must be made anew$'),
    "expired intermediate": (expired_middle, EXPIRED, r'refused by us: the certificate "Middle" has expired on'),
    "CA that is none": (no_ca_in_cafile, UNKNOWN_CA, ISSUED_BY % ("pupil", "No CA")),
    "too long": (lambda s: s.ca.issue("pupil", extensions=LONG + "," + LONG[15:]), BAD, TOO_MUCH),
    "too many": (many, BAD, TOO_MUCH),
    "unknown critical extension": (lambda s: s.ca.issue("pupil", extensions="1.2.3.4=critical,DER:0500"), BAD,
                                   CRITICAL),
    # OpenSSL takes these; BearSSL cannot
    "critical clientAuth": (lambda s: s.ca.issue("pupil", extensions="extendedKeyUsage=critical,clientAuth"), BAD,
                            CRITICAL),
    "RSA-PSS": (lambda s: rsa_authority(s, "sha256", ["-sigopt", "rsa_padding_mode:pss"]), BAD, WEAK_SIGNATURE),
    "Ed25519": (lambda s: s.ca.issue("pupil", "ed25519"), FAILURE, NO_CERTIFICATE),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(new_broker, connect, pki, school, case):
    make, alert, reason = REFUSED[case]
    pair = make(school)
    broker = new_broker(config=mutual(pki.server(), cafile=school.cafile) + ANYBODY, args=["-v"])
    seen, why = refused(broker, trusting(pki.ca, pair))
    assert re.match(reason, why), why
    assert seen == alert
    assert "succeeded" not in broker.log()
    # and nobody else pays for it
    if school.cafile == pki.ca.cert:
        exchange(connect, broker, trusting(pki.ca, pki.client()))


def test_optional(new_broker, connect, pki):
    """Without require_certificate nobody is asked for one, and a wrong one is of no interest."""
    broker = new_broker(config=listener(pki.server(), f"cafile {pki.ca.cert}") + ANYBODY, args=["-v"])
    for pair in (None, pki.client(), pki.other_ca.issue("stranger")):
        exchange(connect, broker, trusting(pki.ca, pair))
    assert 'certificate "' not in broker.log()


def test_capath(new_broker, connect, pki, tmp_path):
    """Every .crt and .pem file of a folder, without c_rehash; other files do not count."""
    (tmp_path / "one.crt").write_text(pki.other_ca.pem())
    (tmp_path / "two.pem").write_text("The lab\n" + pki.ca.pem())
    (tmp_path / "README").write_text("no certificate")
    broker = new_broker(config=listener(pki.server(), f"capath {tmp_path}", "require_certificate true") + ANYBODY)
    for ca in (pki.ca, pki.other_ca):
        exchange(connect, broker, trusting(pki.ca, ca.issue("pupil")))
    assert refused(broker, trusting(pki.ca, pki.authority("Third").issue("pupil")))[0] == UNKNOWN_CA


def test_authorities_are_named(new_broker, pki, tmp_path):
    """The request for a certificate names the CAs, so that a browser or a tool offers the right ones."""
    cafile = together(tmp_path / "cas", pki.other_ca, pki.ca)
    broker = new_broker(config=mutual(pki.server(), cafile=cafile) + ANYBODY)
    done = subprocess.run(["openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{broker.port}"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
    assert b"Acceptable client certificate CA names\nCN = Other CA\nCN = Lab CA\n" in done.stdout


def test_date_checks_disabled(new_broker, connect, pki):
    """disable_client_cert_date_checks: dates do not count, all the rest does."""
    broker = new_broker(config=mutual(pki.server(), "disable_client_cert_date_checks true") + ANYBODY, args=["-v"])
    for days in ((-30, -2), (2, 30)):
        exchange(connect, broker, trusting(pki.ca, pki.ca.issue("pupil", days=days)))
    assert refused(broker, trusting(pki.ca, pki.other_ca.issue("pupil", days=(-30, -2))))[0] == UNKNOWN_CA
    assert refused(broker, trusting(pki.ca))[0] == FAILURE


def test_names_do_not_stay(new_broker, dial, pki):
    """Nobody is logged under the name of the one before, whoever that was: let in, refused or nameless."""
    broker = new_broker("max_handshakes 1", config=mutual(pki.server()) + ANYBODY, args=["-v"])
    pupils = {name: pki.ca.issue(subject) for name, subject in
              {"anna": "anna", "O=nameless": "/O=nameless", "bert": "bert"}.items()}
    for name in ["anna", "O=nameless", "bert", "anna"]:
        before = broker.mark()
        dial(broker, context=trusting(pki.ca, pupils[name]))
        line = broker.wait_log("TLS handshake with .*", after=before).group()
        assert re.search(rf'succeeded: \S+ cipher [\w-]+, certificate "{name}"\.$', line)
        assert re.fullmatch(NO_CERTIFICATE, refused(broker, trusting(pki.ca))[1])
        assert 'certificate "stranger"' in refused(broker, trusting(pki.ca, pki.other_ca.issue("stranger")))[1]


# Revocation

@pytest.fixture
def strict(new_broker, pki, tmp_path):
    """strict(*files): a broker whose crlfile is made of these."""
    def create(*files, cafile=None, start=True):
        crl = tmp_path / "crl.pem"
        crl.write_text("".join(open(f).read() for f in files))
        return new_broker(config=mutual(pki.server(), f"crlfile {crl}", cafile=cafile) + READS_AGAIN, args=["-v"],
                          start=start)
    return create


@pytest.fixture
def revoking(pki):
    """A CA of its own, with two pupils; the second's certificate is revoked."""
    ca = pki.authority()
    good, bad = ca.issue("good"), ca.issue("bad")
    ca.revoke(bad)
    return ca, good, bad


def test_crl(strict, connect, pki, revoking, tmp_path):
    ca, good, bad = revoking
    broker = strict(ca.crl(tmp_path / "list"), cafile=ca.cert)
    exchange(connect, broker, trusting(pki.ca, good))
    seen, why = refused(broker, trusting(pki.ca, bad))
    assert (seen, why) == (REVOKED, 'refused by us: the certificate "bad" was revoked by "Lab CA"')


def test_crl_with_text_around(strict, connect, pki, revoking, tmp_path):
    ca, good, bad = revoking
    text = openssl("crl", "-in", ca.crl(tmp_path / "list"), "-text").replace(b"\n", b"\r\n")
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf" + text)
    broker = strict(tmp_path / "text", cafile=ca.cert)
    exchange(connect, broker, trusting(pki.ca, good))
    assert refused(broker, trusting(pki.ca, bad))[0] == REVOKED


def test_crl_with_many(strict, connect, pki, revoking, tmp_path):
    """Serial numbers of all lengths, in any order."""
    ca, good, bad = revoking
    with open(os.path.join(ca.dir, "index.txt"), "a") as f:
        for i in range(3000):
            serial = f"{(i * 7919) % 3000 + 1:0{2 * (i % 8 + 2)}X}"
            f.write(f"R\t300101000000Z\t250101000000Z\t{serial}\tunknown\t/CN=x{i}\n")
    broker = strict(ca.crl(tmp_path / "list"), cafile=ca.cert)
    exchange(connect, broker, trusting(pki.ca, good))
    assert refused(broker, trusting(pki.ca, bad))[0] == REVOKED


def test_crl_is_reloaded(strict, connect, pki, revoking, tmp_path):
    """What is revoked while the broker runs counts after HUP, even for one who could resume a session."""
    ca, good, bad = revoking
    broker = strict(ca.crl(tmp_path / "list"), cafile=ca.cert)
    context = trusting(pki.ca, good)
    client = exchange(connect, broker, context)
    session = client.sock.session
    ca.revoke(good)
    ca.crl(tmp_path / "crl.pem")
    broker.signal(signal.SIGHUP)
    broker.wait_log(f"The certificates of port {broker.port} were read anew")
    assert refused(broker, context)[0] == REVOKED
    with pytest.raises(ssl.SSLError, match="REVOKED"):
        resume(broker, context, session)
    client.ping()   # who is there stays


def test_broken_crl_on_reload(strict, connect, pki, revoking, tmp_path):
    """A list that cannot be used leaves the old one in force."""
    ca, good, bad = revoking
    broker = strict(ca.crl(tmp_path / "list"), cafile=ca.cert)
    (tmp_path / "crl.pem").write_text("nonsense")
    broker.signal(signal.SIGHUP)
    broker.wait_log(r'Error: Unable to load certificate revocation file ".*crl.pem". Check crlfile: it holds no '
                    "revocation list in PEM form")
    broker.wait_log(f"Port {broker.port} goes on with the certificates that it had")
    exchange(connect, broker, trusting(pki.ca, good))
    assert refused(broker, trusting(pki.ca, bad))[0] == REVOKED


def test_crl_of_another(strict, pki, revoking, tmp_path):
    """No list of the issuer: nobody knows what it has revoked."""
    ca, good, bad = revoking
    cafile = together(tmp_path / "cas", ca, pki.other_ca)
    broker = strict(pki.other_ca.crl(tmp_path / "list"), cafile=cafile)
    seen, why = refused(broker, trusting(pki.ca, good))
    assert (seen, why) == (UNKNOWN, 'refused by us: crlfile has no list of "Lab CA", which issued the certificate '
                                    '"good"; add it')


def test_crls_of_several(strict, connect, pki, revoking, tmp_path):
    """A list for each CA. What one revokes is no matter of the other, whatever the serial number."""
    ca, good, bad = revoking
    cafile = together(tmp_path / "cas", ca, pki.other_ca)
    broker = strict(pki.other_ca.crl(tmp_path / "list1"), ca.crl(tmp_path / "list2"), cafile=cafile)
    exchange(connect, broker, trusting(pki.ca, good))
    exchange(connect, broker, trusting(pki.ca, pki.other_ca.issue("guest")))
    assert refused(broker, trusting(pki.ca, bad))[0] == REVOKED


def test_crl_too_old(strict, pki, revoking, tmp_path):
    ca, good, bad = revoking
    broker = strict(ca.crl(tmp_path / "list", days=(-30, -2)), cafile=ca.cert)
    broker.wait_log(rf'Warning: The revocation list of "Lab CA" was to be renewed by {day(-2)}: until it is, its '
                    r"clients are refused \('openssl ca -gencrl', then SIGHUP\)")
    seen, why = refused(broker, trusting(pki.ca, good))
    assert (seen, why) == (UNKNOWN, f'refused by us: the revocation list of "Lab CA" was to be renewed by {day(-2)} '
                                    "('openssl ca -gencrl', then SIGHUP)")
    assert refused(broker, trusting(pki.ca, bad))[0] == REVOKED


def test_crl_of_tomorrow(strict, pki, revoking, tmp_path):
    """A list that is not valid yet is none, for OpenSSL too."""
    ca, good, bad = revoking
    broker = strict(ca.crl(tmp_path / "list", days=(2, 30)), cafile=ca.cert)
    assert refused(broker, trusting(pki.ca, good))[0] == UNKNOWN
    assert refused(broker, trusting(pki.ca, bad))[0] in (UNKNOWN, REVOKED)


def test_forged_crl(strict, pki, revoking, tmp_path):
    """The name of the CA, but not its key."""
    ca, good, bad = revoking
    code, _, log = strict(pki.authority().crl(tmp_path / "list"), cafile=ca.cert, start=False).run()
    assert code == 1
    assert re.search(r'Check crlfile: the list of "Lab CA" is not signed by a CA of cafile or capath\.', log), log


def test_crl_revokes_an_authority(strict, pki, tmp_path):
    """Who was issued by an authority that is revoked is refused too."""
    root = pki.authority("Root")
    middle = pki.authority("Middle", parent=root)
    pupil = middle.issue("pupil")
    root.revoke(middle)
    pupil.cert = together(tmp_path / "chain", pupil, middle)
    cafile = together(tmp_path / "cas", root, middle)
    broker = strict(root.crl(tmp_path / "list1"), middle.crl(tmp_path / "list2"), cafile=cafile)
    seen, why = refused(broker, trusting(pki.ca, pupil))
    assert (seen, why) == (REVOKED, 'refused by us: the certificate "Middle" was revoked by "Root"')


# Resumption

def resume(broker, context, session, port="port"):
    """A handshake that offers this session; whether it was resumed."""
    with connection(broker, port) as s:
        with context.wrap_socket(s, server_hostname="localhost", session=session) as tls:
            return tls.session_reused


def session_of(broker, context, port="port"):
    with connection(broker, port) as s:
        with context.wrap_socket(s, server_hostname="localhost") as tls:
            return tls.session


def test_resumed_session_has_its_certificate(new_broker, pki):
    broker = new_broker(config=mutual(pki.server()) + ANYBODY, args=["-v"])
    contexts = {name: trusting(pki.ca, pki.ca.issue(name)) for name in ("anna", "bert")}
    sessions = {name: session_of(broker, context) for name, context in contexts.items()}
    for name in ("bert", "anna", "bert"):
        before = broker.mark()
        assert resume(broker, contexts[name], sessions[name])
        broker.wait_log(rf'succeeded: TLSv1\.2 cipher \S+, resumed, certificate "{name}"\.$', after=before)


def test_no_certificate_by_resumption(new_broker, pki):
    """A session of a listener that asks for none, or has other authorities, opens no other listener."""
    broker = new_broker(config=listener(pki.server()) + mutual(pki.server(), port="port2")
                        + mutual(pki.server(), cafile=pki.other_ca.cert, port="port3") + ANYBODY, args=["-v"])
    context = trusting(pki.ca)
    session = session_of(broker, context)
    assert resume(broker, context, session)
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        resume(broker, context, session, "port2")
    context = trusting(pki.ca, pki.client())
    session = session_of(broker, context, "port2")
    assert resume(broker, context, session, "port2")
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        resume(broker, context, session, "port3")


def test_refused_sessions_are_not_kept(new_broker, pki):
    """Who was refused has no session to come back with."""
    broker = new_broker(config=mutual(pki.server()) + ANYBODY)
    context = trusting(pki.ca, pki.other_ca.issue("stranger"))
    for _ in range(2):
        assert refused(broker, context)[0] == UNKNOWN_CA


# Names of users

CONNECTED = r"New client connected from 127\.0\.0\.1:\d+ as %s \(p\d, c1, k60, u'%s'\)\.$"

SUBJECTS = [
    "/CN=anna",
    "/C=FR/O=School/OU=3B/CN=anna",
    "/CN=anna/O=School",
    "/O=Lycée/CN=Élève n°1",
    "/CN=日本",
    "/CN=a,b",
    '/CN=a"b\\\\c<d>e;f',
    "/CN= leading",
    "/CN=trailing ",
    "/CN=#hash",
    "/CN=a=b",
    "/CN=one+OU=two+O=three/C=FR",
    "/DC=org/DC=example/UID=u1/CN=anna",
    "/emailAddress=a@b.org/SN=Last/GN=First/title=Dr/serialNumber=17/L=Paris/ST=x/CN=anna",
    "/street=Rue 1/postalCode=75001/CN=anna",
    "/1.2.3.4=odd/CN=anna",
    "/CN=first/CN=second",
]


# The types of string that subjects come in, as openssl req takes them; T61String is for ASCII only.
MASKS = {"UTF8": "utf8only", "BMP": "MASK:0x800", "T61": "MASK:0x4"}


@pytest.mark.parametrize("subject, mask", [pytest.param(s, m, id=f"{s}-{name}") for s in SUBJECTS
                                           for name, m in MASKS.items() if name != "T61" or s.isascii()])
def test_subject(new_broker, connect, pki, subject, mask):
    """use_subject_as_username: the subject as openssl x509 -nameopt RFC2253 prints it."""
    pair = pki.ca.issue(subject, mask=mask)
    name = openssl("x509", "-in", pair.cert, "-noout", "-subject", "-nameopt", "RFC2253").decode()
    name = name.rstrip("\n").partition("=")[2]
    broker = new_broker(config=mutual(pki.server(), "use_subject_as_username true"))
    client = connect(broker=broker, context=trusting(pki.ca, pair))
    broker.wait_log(CONNECTED % (client.id, re.escape(name)))


@pytest.mark.parametrize("subject, name", [
    ("/CN=anna", "anna"), ("/O=School/CN=Élève n°1", "Élève n°1"), ("/CN=first/CN=second", "first"),
    ("/CN=a,b+OU=c", "a,b"), ("/CN= x ", " x "),
])
@pytest.mark.parametrize("mask", ["utf8only", "MASK:0x800"], ids=["UTF8", "BMP"])
def test_identity(new_broker, connect, pki, subject, name, mask):
    """use_identity_as_username: the first CN, whatever CONNECT says."""
    broker = new_broker(config=mutual(pki.server(), "use_identity_as_username true"))
    context = trusting(pki.ca, pki.ca.issue(subject, mask=mask))
    for given in ({}, {"username": "teacher", "password": "wrong"}):
        client = connect(broker=broker, context=context, **given)
        broker.wait_log(CONNECTED % (client.id, re.escape(name)))


@pytest.mark.parametrize("version, reason", [(V311, 4), (V5, 0x86)])
def test_no_identity(new_broker, dial, pki, version, reason):
    """A certificate without CN gives no name, and so nobody comes in."""
    broker = new_broker(config=mutual(pki.server(), "use_identity_as_username true", ANYBODY))
    client = dial(broker, context=trusting(pki.ca, pki.ca.issue("/O=nameless")), version=version)
    client.connect("x", reason=reason, username="anna")
    client.expect_closed()


def test_identity_wins(new_broker, connect, pki):
    """Both options: the CN is the name."""
    broker = new_broker(config=mutual(pki.server(), "use_subject_as_username true", "use_identity_as_username true"))
    client = connect(broker=broker, context=trusting(pki.ca, pki.ca.issue("/O=School/CN=anna")))
    broker.wait_log(CONNECTED % (client.id, "anna"))


def test_identity_by_resumption(new_broker, connect, pki):
    """Who resumes a session has the name of its certificate, and the next client its own."""
    broker = new_broker(config=mutual(pki.server(), "use_identity_as_username true"))
    for name in ("anna", "bert"):
        context = trusting(pki.ca, pki.ca.issue(name))
        session = session_of(broker, context)
        for _ in range(2):
            client = connect(broker=broker, context=Resuming(context, session))
            assert client.sock.session_reused
            broker.wait_log(CONNECTED % (client.id, name))


class Resuming:
    """A context that offers a session."""

    def __init__(self, context, session):
        self.context, self.session = context, session

    def wrap_socket(self, sock, **options):
        return self.context.wrap_socket(sock, session=self.session, **options)


@pytest.fixture
def users(tmp_path):
    """A password file, readable for a broker that gives up its rights."""
    path = tmp_path / "users"
    path.write_text(password_line("anna", "secret"))
    return f"password_file {path}"


def login(dial, broker, context, reason, **fields):
    client = dial(broker, context=context)
    client.connect("lab", reason=reason, **fields)


def test_certificate_only(new_broker, dial, pki):
    """require_certificate, use_identity_as_username, allow_anonymous false: the certificate is the login."""
    broker = new_broker(config=mutual(pki.server(), "use_identity_as_username true", "allow_anonymous false"))
    login(dial, broker, trusting(pki.ca, pki.client()), 0)
    assert refused(broker, trusting(pki.ca))[0] == FAILURE


def test_certificate_and_password(new_broker, dial, pki, users):
    """require_certificate without use_identity_as_username, password_file: both are needed."""
    broker = new_broker(config=mutual(pki.server(), "allow_anonymous false", users))
    context = trusting(pki.ca, pki.client())
    login(dial, broker, context, 0, username="anna", password="secret")
    login(dial, broker, context, 5, username="anna", password="wrong")
    login(dial, broker, context, 5, username="pupil", password="secret")
    login(dial, broker, context, 5)
    assert refused(broker, trusting(pki.ca))[0] == FAILURE


def test_certificate_or_nobody(new_broker, dial, pki):
    """require_certificate, allow_anonymous true: the certificate opens the door, the name is free."""
    broker = new_broker(config=mutual(pki.server(), "allow_anonymous true"))
    login(dial, broker, trusting(pki.ca, pki.client()), 0)
    login(dial, broker, trusting(pki.ca, pki.client()), 0, username="anybody")
    assert refused(broker, trusting(pki.ca))[0] == FAILURE


def test_certificate_without_login(new_broker, dial, pki):
    """require_certificate, allow_anonymous false, nothing that gives names: nobody comes in."""
    broker = new_broker(config=mutual(pki.server(), "allow_anonymous false"))
    login(dial, broker, trusting(pki.ca, pki.client()), 5)
    login(dial, broker, trusting(pki.ca, pki.client()), 5, username="anybody")


def test_password_over_tls(new_broker, dial, pki, users):
    """require_certificate false, password_file: TLS for secrecy, the password for the name."""
    broker = new_broker(config=listener(pki.server(), "allow_anonymous false", users))
    login(dial, broker, trusting(pki.ca), 0, username="anna", password="secret")
    login(dial, broker, trusting(pki.ca), 5, username="anna", password="wrong")
    login(dial, broker, trusting(pki.ca), 5)


def test_identity_does_not_ask_passwords(new_broker, dial, pki, users):
    """With use_identity_as_username the password file is for the other listeners."""
    broker = new_broker(config=mutual(pki.server(), "use_identity_as_username true")
                        + f"listener {{port2}} 127.0.0.1\nallow_anonymous false\n{users}\n")
    login(dial, broker, trusting(pki.ca, pki.client()), 0)
    login(dial, broker, trusting(pki.ca, pki.ca.issue("anna")), 0, username="anna", password="wrong")
    plain = dial(address=("127.0.0.1", broker.ports["port2"]))
    plain.connect("plain", reason=5, username="pupil")


def test_rules_for_identities(new_broker, connect, pki, tmp_path):
    """acl_file applies to the CN: what one pupil may write, the other may not."""
    rules = tmp_path / "rules"
    rules.write_text("pattern read lab/#\nuser anna\ntopic lab/anna\nuser bert\ntopic lab/bert\n")
    broker = new_broker(config=mutual(pki.server(), "use_identity_as_username true", f"acl_file {rules}"))
    clients = {name: connect(broker=broker, context=trusting(pki.ca, pki.ca.issue(name))) for name in ("anna", "bert")}
    for client in clients.values():
        client.subscribe("lab/#")
    clients["anna"].publish("lab/bert", "mine now", qos=1)
    clients["anna"].publish("lab/anna", "hello", qos=1)
    clients["bert"].expect_publish("lab/anna", "hello")
