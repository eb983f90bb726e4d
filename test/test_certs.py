"""cross/make-certs: what it makes, what openssl says to it, and what it refuses."""

import datetime
import os
import re
import shutil
import stat
import subprocess

import pytest

from wire import ROOT

TOOL = os.path.join(ROOT, "cross", "make-certs")

SHELLS = [["dash"], ["busybox", "ash"], ["bash", "--posix"]]


@pytest.fixture
def make(tmp_path):
    """make(*args): runs make-certs in a directory of its own, returns the finished process."""
    def run(*args, shell=()):
        return subprocess.run([*shell, TOOL, *args], cwd=tmp_path, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
    return run


def made(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(done, sentence):
    assert done.returncode == 1, done
    assert re.search(sentence, done.stderr), done.stderr


def openssl(*args):
    done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def text(cert):
    return openssl("x509", "-in", cert, "-noout", "-text")


def contents(path):
    return {f.name: f.read_bytes() for f in path.iterdir()}


@pytest.mark.parametrize("shell", SHELLS, ids=lambda s: s[0])
def test_authority_broker_and_clients(make, tmp_path, shell):
    """One run makes all; openssl finds each certificate good for its purpose and for no other."""
    if not shutil.which(shell[0]):
        pytest.skip(f"no {shell[0]} here")
    made(make("pi.local", "192.168.1.20", "fd00::20", "--client", "alice", "--client", "bob", shell=shell))
    certs = tmp_path / "certs"
    assert sorted(contents(certs)) == sorted(f"{n}.{e}" for n in ("ca", "broker", "alice", "bob")
                                             for e in ("crt", "key"))
    verify = ["verify", "-x509_strict", "-CAfile", certs / "ca.crt"]
    openssl(*verify, "-purpose", "sslserver", certs / "broker.crt")
    for name in ("alice", "bob"):
        openssl(*verify, "-purpose", "sslclient", certs / f"{name}.crt")
        assert re.search(rf"Subject: CN = {name}\n", text(certs / f"{name}.crt"))
    for purpose, name in (("sslclient", "broker"), ("sslserver", "alice")):
        with pytest.raises(AssertionError, match="certificate purpose"):
            openssl(*verify, "-purpose", purpose, certs / f"{name}.crt")


def test_names_of_the_broker(make, tmp_path):
    """All names and addresses are in the certificate, and those alone."""
    made(make("pi.local", "192.168.1.20", "PI", "::1"))
    broker = tmp_path / "certs" / "broker.crt"
    assert re.search(r"Subject Alternative Name: *\n *DNS:pi\.local, IP Address:192\.168\.1\.20, DNS:PI, "
                     r"IP Address:0:0:0:0:0:0:0:1\n", text(broker))
    for option, value in (("host", "pi.local"), ("host", "PI"), ("ip", "192.168.1.20"), ("ip", "::1")):
        assert "does match" in openssl("x509", "-in", broker, "-noout", f"-check{option}", value)
    assert "does NOT match" in openssl("x509", "-in", broker, "-noout", "-checkhost", "other.local")


def test_authority(make, tmp_path):
    """It signs certificates and lists of the revoked, and its name is no other certificate's."""
    made(make("pi.local"))
    ca = text(tmp_path / "certs" / "ca.crt")
    assert re.search(r"Basic Constraints: critical\n *CA:TRUE", ca)
    assert re.search(r"Key Usage: critical\n *Certificate Sign, CRL Sign\n", ca)
    made(make("pi.local", "--dir", "other"))
    subject = r"Subject: (CN = midge CA [-0-9]{10} [0-9a-f]{4})\n"
    name = re.search(subject, ca).group(1)
    assert f"Issuer: {name}\n" in text(tmp_path / "certs" / "broker.crt")
    assert re.search(subject, text(tmp_path / "other" / "ca.crt"))


@pytest.mark.parametrize("option, key", [([], "NIST CURVE: P-256"), (["--rsa"], r"Public-Key: \(2048 bit\)")])
def test_kind_of_key(make, tmp_path, option, key):
    made(make("pi.local", "--client", "alice", *option))
    for name in ("ca", "broker", "alice"):
        path = tmp_path / "certs" / f"{name}.key"
        assert re.search(key, text(path.with_suffix(".crt")))
        assert path.read_text().startswith("-----BEGIN PRIVATE KEY-----")     # no password
        public = openssl("pkey", "-in", path, "-pubout")
        assert public == openssl("x509", "-in", path.with_suffix(".crt"), "-noout", "-pubkey")


def test_modes(make, tmp_path):
    """Keys are for their owner alone, whatever the umask; certificates for all."""
    before = os.umask(0)
    try:
        made(make("pi.local", "--client", "alice"))
    finally:
        os.umask(before)
    for file in (tmp_path / "certs").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == (0o600 if file.suffix == ".key" else 0o644), file


def test_clients_later(make, tmp_path):
    """A later run uses the authority that is there; the files of the first stay as they are."""
    made(make("pi.local", "--client", "alice"))
    certs = tmp_path / "certs"
    before = contents(certs)
    made(make("--client", "carol", "--rsa"))
    after = contents(certs)
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == ["carol.crt", "carol.key"]
    openssl("verify", "-purpose", "sslclient", "-CAfile", certs / "ca.crt", certs / "carol.crt")


def test_nothing_is_written_over(make, tmp_path):
    """A name that is taken is refused, and nothing else of the same command is made."""
    made(make("pi.local", "--client", "alice"))
    certs = tmp_path / "certs"
    os.symlink("/nowhere", certs / "eve.key")
    before = sorted(os.listdir(certs))
    for args, file in ((["pi.local"], "broker.crt"), (["--client", "bob", "--client", "alice"], "alice.crt"),
                       (["--client", "eve"], "eve.key")):
        refused(make(*args), rf"certs/{file} is there already and is not written over; move it away")
        assert sorted(os.listdir(certs)) == before


def test_half_an_authority(make, tmp_path):
    """Without its key the authority cannot sign; a new one would make the old certificates worthless."""
    made(make("pi.local"))
    os.remove(tmp_path / "certs" / "ca.key")
    refused(make("--client", "alice"), "one is missing or cannot be read; bring it back")


def test_no_authority_for_clients(make, tmp_path):
    refused(make("--client", "alice"), "no authority in certs yet; begin with the names of the broker")
    assert not (tmp_path / "certs").exists()


def test_openssl_fails(make, tmp_path):
    """What openssl refuses is shown, and leaves nothing behind."""
    refused(make("1:2:3:4:5:6:7:8:9"), "(?s)IP.*openssl x509 failed, see above; nothing was made")
    assert os.listdir(tmp_path / "certs") == []


@pytest.mark.parametrize("name", [
    "", "a b", "a,IP:1.2.3.4", "a/b", "a\nb", "pi.local\n", "ü.local", "-x.local", "x-.local", "a..b", "a_b",
    "*.local", "$HOME", "a" * 65, "a." + "b" * 64, "192.168.1", "192.168.1.256", "1.2.3.4.5", "fd00::g", "[::1]",
    "1.2.3.4\n5"])
def test_odd_names_of_the_broker(make, tmp_path, name):
    refused(make("pi.local", name), "is no host name and no address; write them like|unknown option")
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", ".x", "-x", "a\nb", "é", "a=b", "a,b", "a;b", "$x", "#x",
                                  "a" * 65, "ca", "broker"])
def test_odd_names_of_clients(make, tmp_path, name):
    refused(make("pi.local", "--client", name),
            "cannot be a user name here; take letters|is the name of a file of the broker|longer than the 64")
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize("name", ["alice@example.org", "@x", "a.b-c_D9", "0", "a" * 64])
def test_names_of_clients(make, tmp_path, name):
    """The CN is the name to the letter: the broker takes it as user name."""
    made(make("pi.local", "--client", name))
    subject = openssl("x509", "-in", tmp_path / "certs" / f"{name}.crt", "-noout", "-subject", "-nameopt", "utf8")
    assert subject == f"subject=CN={name}\n"


@pytest.mark.parametrize("args, sentence", [
    (["--client"], "--client wants a value"),
    (["--days", "0", "pi"], "--days wants a number"),
    (["--days", "1e9", "pi"], "--days wants a number"),
    (["--client", "a", "--client", "a", "pi"], "--client a is there twice"),
    (["--password", "pi"], 'unknown option "--password"'),
    ([], "^usage: ")])
def test_wrong_use(make, tmp_path, args, sentence):
    refused(make(*args), sentence)
    assert os.listdir(tmp_path) == []


def test_days(make, tmp_path):
    made(make("--days", "30", "pi"))
    for name in ("ca", "broker"):
        dates = openssl("x509", "-in", tmp_path / "certs" / f"{name}.crt", "-noout", "-dates")
        start, end = (datetime.datetime.strptime(d, "%b %d %H:%M:%S %Y GMT")
                      for d in re.findall("=(.*)", dates))
        assert end - start == datetime.timedelta(days=30)


def test_what_it_prints(make):
    """The lines for the configuration and the command to try it with, also without clients."""
    lines = made(make("pi.local", "--client", "alice", "--dir", "school")).splitlines()
    for line in ("listener 8883", "cafile /etc/midge/ca.crt", "certfile /etc/midge/broker.crt",
                 "keyfile /etc/midge/broker.key", "require_certificate true", "use_identity_as_username true",
                 "mosquitto_sub -h pi.local -p 8883 --cafile school/ca.crt --cert school/alice.crt "
                 "--key school/alice.key -t '#' -v"):
        assert line in lines
    lines = made(make("192.168.1.20")).splitlines()
    assert "mosquitto_sub -h 192.168.1.20 -p 8883 --cafile certs/ca.crt -t '#' -v" in lines


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
def test_shellcheck():
    done = subprocess.run(["shellcheck", TOOL], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
