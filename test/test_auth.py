"""Who may connect and who may do what: password files, the password tool, ACL files, delays, reload.

Where Debian's Mosquitto is installed the same files are given to it, and it has to agree."""

import base64
import hashlib
import os
import pty
import re
import shutil
import signal
import subprocess

import pytest

from test_loop import cpu_ticks
from wire import CONNACK, PINGRESP, PUBACK, V31, V311, V5, Will, command, password_line, pingreq, publish, wait_for
from wire import connect as connect_packet

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin")
MOSQUITTO_PASSWD = shutil.which("mosquitto_passwd")
MIDGE = command()
LISTENER = "listener {port} 127.0.0.1\n"
NOT_AUTHORIZED = 0x87


def refused(version):
    return NOT_AUTHORIZED if version == V5 else 5


def line(user, password, rounds=101, salt=b"saltsaltsalt"):
    """A line of a password file; rounds 0: $6$."""
    word = password.encode() if isinstance(password, str) else password
    hashed = hashlib.pbkdf2_hmac("sha512", word, salt, rounds) if rounds else hashlib.sha512(word + salt).digest()
    rounds = f"$7${rounds}" if rounds else "$6"
    return f"{user}:{rounds}${base64.b64encode(salt).decode()}${base64.b64encode(hashed).decode()}\n"


def endless(user):
    """One whose password takes as long to check as a file may ask for."""
    return f"{user}:$7$10000000$c2FsdHNhbHRzYWx0${base64.b64encode(bytes(64)).decode()}\n"


def write(broker, name, text, mode=0o600):
    data = text if isinstance(text, bytes) else text.encode()
    with open(broker.path(name), "wb") as f:
        f.write(data)
    os.chmod(broker.path(name), mode)


@pytest.fixture
def guarded(new_broker):
    """guarded(users=, rules=, lines...): a broker with these files; users alice and bob by default."""
    def create(*lines, users=password_line("alice", "a") + password_line("bob", "b"), rules=None, start=True,
               config=LISTENER, mode=0o600):
        given = ["password_file {dir}/users"] if users is not None else []
        given += ["acl_file {dir}/rules"] if rules is not None else []
        # As another user the broker could not read the files anew.
        broker = new_broker(*given, "user root", *lines, config=config, args=["-v"], start=False)
        if users is not None:
            write(broker, "users", users, mode)
        if rules is not None:
            write(broker, "rules", rules, mode)
        return broker.start() if start else broker
    return create


@pytest.fixture(params=["midge", pytest.param("mosquitto", marks=pytest.mark.skipif(
    not MOSQUITTO, reason="Debian's mosquitto is not installed"))])
def either(request, monkeypatch):
    """The test runs with midge, and with Mosquitto to see whether the test itself is right."""
    if request.param == "mosquitto":
        monkeypatch.setenv("MIDGE", MOSQUITTO)
    return request.param


@pytest.fixture
def login(dial):
    """login(broker, user, password, version=): the reason in the CONNACK; the refused are closed."""
    def attempt(broker, user, password, version=V311, client_id="x"):
        client = dial(broker, version=version)
        reason = client.connect(client_id, reason=None, username=user, password=password).reason
        if reason:
            client.expect_closed()
        return reason
    return attempt


# Password files

@pytest.mark.parametrize("rounds, salt", [(101, b"saltsaltsalt"), (1, b"s"), (1000, bytes(range(64))), (0, b"saltsaltsalt"),
                                          (0, bytes(range(64)))],
                         ids=["2.0", "least", "2.1", "1.6", "1.6 with a long salt"])
def test_kinds_of_hashes(guarded, login, rounds, salt):
    users = line("alice", "right", rounds, salt) + line("binary", b"\xff\0\xc0", rounds, salt)
    broker = guarded(users=users)
    for version in (V31, V311, V5):
        assert login(broker, "alice", "right", version) == 0
        assert login(broker, "alice", "Right", version) == refused(version)
    assert login(broker, "binary", b"\xff\0\xc0") == 0
    assert login(broker, "binary", b"\xff") == 5


def test_form_of_the_file(guarded, login):
    """Comments, lines without colon, blanks around both parts, CRLF, a byte order mark, no newline at the end."""
    users = ("\ufeff" + line("first", "1") + "# a:comment\n\nno colon\n  blank : " + line("", "2")[1:-1] + "  \r\n"
             + line("ünïcode", "3").replace("\n", "\r\n") + line("Case", "4") + line("two words", "5").rstrip())
    broker = guarded(users=users)
    for user, password in (("first", "1"), ("blank", "2"), ("ünïcode", "3"), ("Case", "4"), ("two words", "5")):
        assert login(broker, user, password) == 0
    assert login(broker, "case", "4") == 5


def test_long_file_and_long_names(guarded, login):
    """Many users, a name and a password as long as MQTT can carry, a line of a megabyte."""
    users = "".join(line(f"user{i}", str(i), 0) for i in range(3000))
    users += "#" + "x" * 1000000 + "\n" + line("n" * 65535, "p" * 65535)
    broker = guarded(users=users)
    assert login(broker, "user0", "0") == 0
    assert login(broker, "user2999", "2999") == 0
    assert login(broker, "user3000", "3000") == 5
    assert login(broker, "n" * 65535, "p" * 65535) == 0
    assert login(broker, "n" * 65535, "p" * 65534) == 5


GOOD = line("alice", "a")

BAD_FILES = {
    "plain": ("alice:secret\n", r"User alice has a password that is not hashed", r"midge passwd -U \S*/users$"),
    "argon2": ("# x\nalice:$argon2id$v=19$m=47104,t=1,p=1$c2FsdA$aGFzaA\n", "argon2", r":2\. .*midge passwd \S*/users alice$"),
    "rounds 0": (GOOD.replace("$101$", "$0$"), "damaged", ":1"),
    "too many rounds": (GOOD.replace("$101$", "$10000001$"), "10000000", ":1"),
    "very many rounds": (GOOD.replace("$101$", "$18446744073709551717$"), "10000000", ":1"),
    "no salt": (GOOD.replace("c2FsdHNhbHRzYWx0", ""), "damaged", ":1"),
    "salt of 65 bytes": (line("alice", "a", salt=bytes(65)), "damaged", ":1"),
    "short hash": (GOOD.replace("==\n", "\n"), "damaged", ":1"),
    "trailing": (GOOD.replace("\n", "x\n"), "damaged", ":1"),
    "padding inside": (GOOD.replace("c2Fs", "c2==", 1), "damaged", ":1"),
    "no base64": (GOOD.replace("c2Fs", "c2*s", 1), "damaged", ":1"),
    "empty name": (GOOD.replace("alice", ""), "empty", ":1"),
    "long name": (line("x" * 65536, "a"), "too long", ":1"),
    "twice": (GOOD + line("alice", "b"), "twice", ":2"),
    "NUL": ("# x\n" + GOOD + "\0", "NUL byte in line 3", "users"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_password_files(guarded, case):
    """Told with file, line and remedy; exit code 13."""
    text, *patterns = BAD_FILES[case]
    code, _, log = guarded(users=text, start=False).run()
    assert code == 13
    for pattern in patterns:
        assert re.search(pattern, log, re.M), log


@pytest.mark.parametrize("option", ["password_file", "acl_file"])
@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "missing", "forbidden"])
def test_files_that_are_none(new_broker, option, kind):
    """Nothing hangs, whatever stands there."""
    broker = new_broker(option + " {dir}/it", config=LISTENER, start=False)
    path = broker.path("it")
    if kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.symlink("/dev/zero", path)
    elif kind == "forbidden":
        write(broker, "it", "# nothing\n", 0)
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
    code, _, log = broker.run()
    assert code == 13
    assert f'"{path}": ' in log
    assert option.replace("password_file", "pwfile") in log


def test_a_comment_behind_the_name(new_broker):
    """It belongs to the name in Mosquitto's grammar; the error says so."""
    code, _, log = new_broker("password_file {dir}/none # comment", start=False).run()
    assert code == 13
    assert "behind # belongs to the name" in log


def test_warning_of_readable_files(guarded):
    broker = guarded(mode=0o644)
    broker.wait_log("Warning: File .*/users can be read by everybody. Mend it with: chmod o= .*/users")
    assert "Warning: File" not in guarded().log()


# Logins

def test_refused_logins_in_the_log(guarded, login):
    """One line with a fixed beginning for each, with address, client id, user, reason and what to do."""
    broker = guarded()
    for user, password, why in (("alice", "x", "wrong password; 'midge passwd"), ("eve", "a", "not in the password file; "),
                                ("alice", None, "user name but no password")):
        assert login(broker, user, password, client_id="the-id") == 5
        broker.wait_log(rf"^\d+: Login refused: 127\.0\.0\.1:\d+, client 'the-id', user '{user}': .*{why}")
    assert login(broker, None, None) == 5
    broker.wait_log(r"Login refused: 127\.0\.0\.1:\d+, client 'x', no user: .*allow_anonymous true")
    assert login(broker, "a\nb", "x") == 5
    broker.wait_log(r"user 'a\\x0ab'")


def test_user_without_password_file(new_broker, login):
    """Refused when anonymous clients are, as nobody can look the user up."""
    assert login(new_broker(config=LISTENER), "alice", "a") == 5
    assert login(new_broker(), "alice", "a") == 0
    local = new_broker(config="allow_anonymous false\n", args=["-p", "{port}"])
    assert login(local, "alice", "a") == 0
    assert login(local, None, None) == 5


def test_anonymous_beside_a_password_file(guarded, login):
    """allow_anonymous is about clients without a user name only."""
    broker = guarded("allow_anonymous true")
    assert login(broker, None, None) == 0
    assert login(broker, "", "") == 5
    assert login(broker, "alice", "wrong") == 5
    assert login(broker, "alice", "a") == 0


def test_input_behind_connect_waits(guarded, dial):
    """What a client sends before its CONNACK, is handled when the password was found right, in order."""
    broker = guarded(users=line("slow", "s", 20000))
    client = dial(broker)
    client.send(connect_packet(V311, "x", username="slow", password="s", will=Will("w", "will")),
                publish(V311, "t", "1", 1, pid=1), pingreq() * 3)
    client.send(publish(V311, "t", b"2" * 100000, 1, pid=2))
    client.expect(CONNACK, reason=0)
    client.expect(PUBACK, pid=1)
    for _ in range(3):
        client.expect(PINGRESP)
    client.expect(PUBACK, pid=2)


def test_all_of_connect_survives_the_check(guarded, connect):
    """The fields of a CONNECT whose password took many turns: id, will, properties, session."""
    broker = guarded(users=line("slow", "s", 20000) + line("fast", "f"))
    watcher = connect(broker=broker, username="fast", password="f", version=V5)
    watcher.subscribe("will/#")
    client = connect("the-id", broker=broker, username="slow", password="s", version=V5, clean=False, keepalive=33,
                     properties={"session_expiry_interval": 100, "user_property": ("a", "b")},
                     will=Will("will/topic", "will payload", 0, False, {"content_type": "text", "user_property": ("k", "v")}))
    broker.wait_log(r"New client connected from \S+ as the-id \(p5, c0, k33, u'slow'\)")
    client.close()
    p = watcher.expect_publish("will/topic", "will payload")
    assert p.properties == [("content_type", "text"), ("user_property", ("k", "v"))]
    again = connect("the-id", broker=broker, username="slow", password="s", version=V5, clean=False)
    assert again.connack.session_present


def test_a_login_does_not_hold_up_others(guarded, dial, connect):
    """While a password of a million rounds is checked, others exchange messages. Counted, not timed:
    without slices the CONNACK would stand before the first of them."""
    broker = guarded(users=line("slow", "s", 1000000) + line("fast", "f"))
    other = connect(broker=broker, username="fast", password="f")
    other.subscribe("t")
    slow = dial(broker, timeout=40)
    slow.send(connect_packet(V311, "slow", username="slow", password="s"))
    slow.sock.setblocking(False)
    exchanges = 0
    while exchanges < 200:
        other.publish("t", str(exchanges))
        other.expect_publish("t", str(exchanges))
        exchanges += 1
        with pytest.raises(BlockingIOError):
            slow.sock.recv(1)
    slow.expect(CONNACK, reason=0)


def test_many_logins_at_once(guarded, dial, connect):
    """They take turns: a short one is through before the long ones that came earlier."""
    broker = guarded(users=line("slow", "s", 1000000) + line("fast", "f"))
    waiting = []
    for i in range(30):
        client = dial(broker)
        client.send(connect_packet(V311, f"slow{i}", username="slow", password="s"))
        waiting.append(client)
    connect(broker=broker, username="fast", password="f", timeout=20)
    for client in waiting:
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        client.close(reset=True)
    connect(broker=broker, username="fast", password="f", timeout=20).nothing()


def test_connect_timeout_during_the_check(guarded, dial):
    broker = guarded("connect_timeout 1", users=endless("slow"))
    client = dial(broker)
    client.send(connect_packet(V311, "x", username="slow", password="s"))
    client.expect_closed(timeout=10)
    broker.wait_log("could not be checked within connect_timeout; fewer rounds")


def test_the_end_during_the_check(guarded, dial):
    """Neither a client that goes nor the end of the broker leaves anything behind."""
    broker = guarded(users=endless("slow"))
    gone, there = dial(broker), dial(broker)
    for client in (gone, there):
        client.send(connect_packet(V311, "", username="slow", password="s"))
    broker.wait_log("New connection from .*")
    gone.close(reset=True)
    broker.stop()


def test_takeover_needs_the_password(guarded, connect, login):
    """The client that is there stays until the password of the new one was found right."""
    broker = guarded(users=line("alice", "a", 5000))
    client = connect("the-id", broker=broker, username="alice", password="a")
    assert login(broker, "alice", "x", client_id="the-id") == 5
    client.nothing()
    again = connect("the-id", broker=broker, username="alice", password="a")
    client.expect_closed()
    again.nothing()


# Delays

def test_delay_after_refused_logins(guarded, dial, login):
    """After five wrong passwords the next answer is held back; right ones are not, and end it."""
    broker = guarded()
    for _ in range(5):
        assert login(broker, "alice", "x") == 5
    held, good = dial(broker), dial(broker)
    held.send(connect_packet(V311, "held", username="alice", password="x"), pingreq())
    good.connect("good", username="alice", password="a")
    before = cpu_ticks(broker)
    held.send(pingreq() * 100000)
    held.expect(CONNACK, reason=5)
    held.expect_closed()
    assert cpu_ticks(broker) - before < 20      # it does not spin over what it leaves unread
    for _ in range(5):
        assert login(broker, "alice", "x") == 5
    wait_for(lambda: broker.log().count("Login refused") == 11, "log lines")
    log = [re.search("Login refused.*client '(\\w*)'|connected from .* as (\\w+)", text) for text in broker.lines]
    log = [found.group(1) or found.group(2) for found in log if found and (found.group(1) or found.group(2))]
    assert log == ["x"] * 5 + ["good", "held"] + ["x"] * 5


def test_delay_ends_with_connect_timeout(guarded, dial, login):
    broker = guarded("connect_timeout 1", "login_delay_max 3600")
    for _ in range(9):
        client = dial(broker)
        client.send(connect_packet(V311, "x", username="alice", password="x"))
        client.expect(CONNACK, reason=5)
        client.expect_closed()


def test_no_delay(guarded, login):
    broker = guarded("login_delay_max 0")
    for _ in range(60):     # a minute and more, if there were any
        assert login(broker, "alice", "x") == 5


# Identifiers

def test_use_username_as_clientid(guarded, connect, login):
    broker = guarded("use_username_as_clientid true", "allow_anonymous true")
    client = connect("other", broker=broker, username="alice", password="a")
    broker.wait_log(r"New client connected from \S+ as alice \(")
    connect("yet another", broker=broker, username="alice", password="a")
    client.expect_closed()
    assert login(broker, None, None, client_id="x") == 5
    assert login(broker, None, None, V5, client_id="x") == NOT_AUTHORIZED
    broker.wait_log("no user name, but use_username_as_clientid is true")


# ACL files

RULES = """# comment
topic read open/#
topic write drop/+
topic deny open/secret
topic both
  topic   readwrite   with blanks
user alice
topic readwrite a/#
topic deny a/private/#
topic read $SYS/#
topic write $SYS/#
topic read x/+/z
user bob
topic read a/#
topic write up/%u
pattern readwrite home/%u/#
pattern read clients/%c
pattern deny home/%u/locked
pattern write log/%c/%u
user alice
topic write again
user two words
topic readwrite w
"""

# user, topic, may read, may write
CASES = [
    (None, "open/x", 1, 0), (None, "open", 1, 0), (None, "open/secret", 0, 0), (None, "open/secret/x", 1, 0),
    (None, "drop/x", 0, 1), (None, "drop/x/y", 0, 0), (None, "drop", 0, 0), (None, "both", 1, 1),
    (None, "with blanks", 1, 1), (None, "home//x", 0, 0), (None, "clients/the-id", 1, 0), (None, "clients/other", 0, 0),
    (None, "log/the-id/", 0, 0), (None, "a/x", 0, 0),
    ("alice", "a/x", 1, 1), ("alice", "a", 1, 1), ("alice", "a/private", 0, 0), ("alice", "a/private/x", 0, 0),
    ("alice", "open/x", 0, 0), ("alice", "x/y/z", 1, 0), ("alice", "x/y/y", 0, 0), ("alice", "x//z", 1, 0),
    ("alice", "again", 0, 1), ("alice", "home/alice/x", 1, 1), ("alice", "home/alice", 1, 1), ("alice", "home/bob/x", 0, 0),
    ("alice", "home/alice/locked", 0, 0), ("alice", "clients/the-id", 1, 0), ("alice", "log/the-id/alice", 0, 1),
    ("alice", "log/other/alice", 0, 0), ("alice", "$SYS/broker/version", 1, 0), ("alice", "$SYS/x", 1, 0),
    ("bob", "a/x", 1, 0), ("bob", "a/private/x", 1, 0), ("bob", "up/%u", 0, 1), ("bob", "up/bob", 0, 0),
    ("bob", "home/bob/locked", 0, 0), ("bob", "home/bob/open", 1, 1), ("bob", "$SYS/broker/version", 0, 0),
    ("carol", "home/carol/x", 1, 1), ("carol", "open/x", 0, 0), ("carol", "a/x", 0, 0), ("two words", "w", 1, 1),
    ("", "home//x", 1, 1), ("", "open/x", 0, 0),
    ("home/x", "home/home/x/y", 1, 1), ("+", "home/+/x", 0, 0), ("#", "home/#", 0, 0), ("a+b", "clients/the-id", 0, 0),
]


def test_acl_table(either, new_broker, connect):
    """Every case by what happens to a message: written by the user and read by one who may everything, and
    the other way round."""
    rules = RULES + "user root\ntopic readwrite #\ntopic read $SYS/#\n"
    broker = new_broker("acl_file {dir}/rules", start=False)
    write(broker, "rules", rules, 0o644)
    broker.start()
    root = connect("root", broker=broker, username="root")
    root.subscribe("#")
    for user, topic, may_read, may_write in CASES:
        if user == "" and either == "mosquitto":
            continue    # for Mosquitto a client with an empty name has none
        topic = topic.replace("+", "y").replace("#", "y")
        client = connect("the-id", broker=broker, username=user)
        client.subscribe(topic, check=False)
        client.publish(topic, "by the user", qos=1)
        root.publish(topic, "by root", qos=1)
        client.ping()
        seen = [p.payload for p in client.inbox]
        written = topic.startswith("$SYS") or root.receive().payload == b"by the user"
        if written and not topic.startswith("$SYS"):
            root.expect_publish(topic, "by root")
        root.nothing()
        if topic.startswith("$SYS"):
            assert (len(seen) == 1) == (topic in ("$SYS/broker/version",) and bool(may_read)), (user, topic)
            assert not any(b"by" in payload for payload in seen)
        else:
            assert written == bool(may_write), (user, topic)
            assert seen == [b"by the user"] * (may_read and may_write) + [b"by root"] * may_read, (user, topic)
        client.disconnect()


@pytest.mark.parametrize("text, number", [
    ("topic\n", 1), ("topic foo bar\n", 1), ("# x\ntopic read a#\n", 2), ("topic a/#/b\n", 1), ("topic deny\x20\n\nuser\n", 3),
    ("pattern write\n\npattern a+\n", 3), ("nonsense x\n", 1), ("topic read \xff\n".encode("latin-1"), 1),
    ("topic read " + "x" * 65536, 1), ("user " + "x" * 65536, 1)])
def test_bad_acl_files(guarded, text, number):
    code, _, log = guarded(rules=text, start=False).run()
    assert code == 13
    assert re.search(rf"Error found at \S*/rules:{number}\.$", log, re.M), log


def test_acl_file_of_windows(new_broker, connect):
    broker = new_broker("acl_file {dir}/rules", start=False)
    write(broker, "rules", "\ufefftopic write a\r\ntopic read b\r\n")
    client = connect(broker=broker.start())
    client.subscribe("b")


def test_refused_publish(guarded, connect):
    """3.x acknowledges as usual, 5.0 says why; the log line is Mosquitto's."""
    broker = guarded(rules="user alice\ntopic read #\n")
    for version in (V31, V311, V5):
        client = connect("x", broker=broker, version=version, username="alice", password="a")
        client.subscribe("#")
        reason = NOT_AUTHORIZED if version == V5 else 0
        assert client.publish("t", "0", qos=0) is None
        assert client.publish("t", "1", qos=1).reason == reason
        assert client.publish("t", "2", qos=2).reason == reason
        client.nothing()
        client.disconnect()
    broker.wait_log(r"Denied PUBLISH from x \(d0, q1, r0, m\d+, 't', ... \(1 bytes\)\)")


def test_will_without_permission(guarded, connect):
    """Judged when it is due, not at CONNECT."""
    broker = guarded(rules="user alice\ntopic read #\nuser bob\ntopic write ok\n")
    watcher = connect(broker=broker, username="alice", password="a")
    watcher.subscribe("#")
    for topic in ("forbidden", "ok"):
        connect(broker=broker, username="bob", password="b", will=Will(topic, "will")).close()
    watcher.expect_publish("ok", "will")
    watcher.nothing()


@pytest.mark.parametrize("filter, granted", [
    ("a/#", True), ("a/b", True), ("a/+/c", True), ("+/b", True), ("#", True), ("b", False), ("b/#", False), ("+", True),
    ("a/secret", False), ("a/secret/#", True), ("x/1/y", True), ("x/1/z", False), ("x/+/+", True), ("x/#", True), ("x", False),
    ("$SYS/#", False), ("own/the-id", True), ("own/+", True), ("own/other", False), ("write/x", False),
    ("$share/g/a/b", True), ("$share/g/b", False), ("all/denied", False), ("all/#", False)])
def test_subscriptions_without_hope(new_broker, dial, filter, granted):
    """Refused where no rule lets a message come, with a line in the log; an option has it as Mosquitto has."""
    rules = ("topic read a/#\ntopic deny a/secret\ntopic read x/+/y\ntopic write write/#\ntopic read all/denied\n"
             "topic deny all/#\npattern read own/%c\n")
    for lines, grant in (((), granted), (("acl_check_subscribe false",), True)):
        broker = new_broker("acl_file {dir}/rules", *lines, start=False)
        write(broker, "rules", rules)
        broker.start()
        for version in (V31, V311, V5):
            client = dial(broker, version=version)
            client.connect("the-id")
            code = 1 if grant or version == V31 else NOT_AUTHORIZED if version == V5 else 0x80
            assert client.subscribe(filter, "a/ok", qos=1, check=False).reasons == [code, 1]
            client.disconnect()
        if not grant:
            broker.wait_log(rf"Denied SUBSCRIBE from the-id \('{re.escape(filter)}'\): no rule of the acl_file")


def test_retained_messages_are_judged(guarded, connect):
    broker = guarded(rules="user alice\ntopic #\nuser bob\ntopic read open/#\n")
    alice = connect(broker=broker, username="alice", password="a")
    for topic in ("open/1", "closed/1", "open/2", "closed/2"):
        alice.publish(topic, topic, qos=1, retain=True)
    bob = connect(broker=broker, username="bob", password="b")
    bob.subscribe("#")
    assert {bob.expect_publish().topic for _ in range(2)} == {"open/1", "open/2"}
    bob.nothing()


def test_offline_sessions_are_judged(guarded, connect):
    """By the user that they belong to: nothing waits for it that it may not read."""
    broker = guarded(rules="user alice\ntopic #\nuser bob\ntopic read open\n")
    bob = connect("bob", broker=broker, clean=False, username="bob", password="b")
    bob.subscribe("#", qos=1)
    bob.disconnect()
    alice = connect(broker=broker, username="alice", password="a")
    for topic in ("open", "closed", "open"):
        alice.publish(topic, topic, qos=1)
    bob = connect("bob", broker=broker, clean=False, username="bob", password="b")
    for _ in range(2):
        bob.expect_publish("open")
    bob.nothing()


def test_a_session_of_somebody_else(guarded, connect):
    """Who comes in with another's client id gets what waits there only as far as his own rights go."""
    broker = guarded(rules="user alice\ntopic #\nuser bob\ntopic read open\n")
    first = connect("shared", broker=broker, clean=False, username="alice", password="a")
    first.subscribe("#", qos=1)
    first.disconnect()
    alice = connect(broker=broker, username="alice", password="a")
    for topic in ("closed", "open"):
        alice.publish(topic, topic, qos=1)
    second = connect("shared", broker=broker, clean=False, username="bob", password="b")
    assert second.connack.session_present
    second.expect_publish("open")
    for topic in ("closed", "open"):
        alice.publish(topic, topic, qos=1)
    second.expect_publish("open")
    second.nothing()


def test_shared_subscriptions_go_to_those_who_may(guarded, connect):
    broker = guarded(rules="user alice\ntopic #\nuser bob\ntopic read open\n")
    alice = connect(broker=broker, username="alice", password="a")
    bob = connect(broker=broker, username="bob", password="b")
    for client in (alice, bob):
        client.subscribe("$share/g/#", qos=1)
    pub = connect(broker=broker, username="alice", password="a")
    for i in range(6):
        pub.publish("closed", str(i), qos=1)
    for i in range(6):
        alice.expect_publish("closed", str(i))
    bob.nothing()


def test_one_topic_for_many(guarded, connect):
    """The verdicts that are remembered with a topic belong to their sessions, also when these come and go."""
    broker = guarded("allow_anonymous true", rules="topic #\npattern read only/%c\n" + "".join(
        f"user u{i}\ntopic {'read' if i % 2 else 'deny'} t\n" for i in range(20)),
        users="".join(line(f"u{i}", "p", 1) for i in range(20)))
    pub = connect(broker=broker)
    readers = []
    for i in range(20):
        reader = connect(broker=broker, username=f"u{i}", password="p", version=V31)
        reader.subscribe("t")
        readers.append(reader)
        pub.publish("t", str(i), qos=1)
        pub.publish("t", str(i), qos=1)
        for k, r in enumerate(readers):
            if k % 2:
                r.expect_publish("t", str(i))
                r.expect_publish("t", str(i))
    for r in readers[::2]:
        r.nothing()


def test_dangerous_names(guarded, connect):
    """Wildcards in names keep patterns from granting anything; the log says so once."""
    broker = guarded(users=None, rules="pattern readwrite %c/#\ntopic ok\n", config=LISTENER + "allow_anonymous true\n")
    client = connect("+", broker=broker)
    client.subscribe("ok")
    client.publish("x/y", "1", qos=1)
    client.publish("ok", "2", qos=1)
    client.expect_publish("ok", "2")
    client.nothing()
    broker.wait_log(r"Client \+: the wildcard in its client id or user name keeps it from all patterns")


# Reload

def reload(broker):
    mark = broker.mark()
    broker.signal(signal.SIGHUP)
    broker.wait_log("Reloading config", after=mark)
    return mark


@pytest.mark.parametrize("on", [True, False])
def test_check_retain_source(guarded, connect, on):
    """A retained message whose publisher may no longer write there is not delivered, and is again when it may."""
    rules = "topic readwrite open/#\nuser alice\ntopic {} t/#\nuser bob\ntopic read #\npattern write desk/%c\n"
    broker = guarded("check_retain_source " + ("true" if on else "false"), "allow_anonymous true",
                     rules=rules.format("write"))
    alice = connect("a1", broker=broker, username="alice", password="a")
    alice.publish("t/1", "x", qos=1, retain=True)
    alice.publish("desk/a1", "y", qos=1, retain=True)
    connect("anyone", broker=broker).publish("open/1", "z", qos=1, retain=True)
    alice.disconnect()

    def seen():
        bob = connect(broker=broker, username="bob", password="b")
        bob.subscribe("t/#", "desk/#", "open/#")
        for _ in range(2):      # the first answer may overtake what waits
            bob.ping()
        topics = {bob.receive().topic for _ in range(len(bob.inbox))}
        bob.disconnect()
        return topics

    everything = {"t/1", "desk/a1", "open/1"}
    assert seen() == everything
    write(broker, "rules", rules.format("read"))
    reload(broker)
    assert seen() == (everything - {"t/1"} if on else everything)
    write(broker, "rules", "user bob\ntopic read #\n")
    reload(broker)
    assert seen() == (set() if on else everything)
    write(broker, "rules", rules.format("write"))
    reload(broker)
    assert seen() == everything


def test_reload_of_passwords(guarded, connect, login):
    """Whoever has a new password or none any more has to go; the others stay."""
    broker = guarded(users=password_line("alice", "a") + password_line("bob", "b") + password_line("carol", "c"))
    clients = {user: connect(broker=broker, username=user, password=user[0], version=V5) for user in ("alice", "bob", "carol")}
    write(broker, "users", password_line("alice", "a") + line("bob", "new") + password_line("dave", "d"))
    reload(broker)
    for user, why in (("bob", "has a new password"), ("carol", "is no longer in the password file")):
        clients[user].expect_disconnect(NOT_AUTHORIZED)
        broker.wait_log(f"disconnected: not authorised. Cause: the user {why}")
    clients["alice"].nothing()
    assert login(broker, "bob", "b") == 5
    assert login(broker, "bob", "new") == 0
    assert login(broker, "carol", "c") == 5
    assert login(broker, "dave", "d") == 0


def test_reload_during_a_check(guarded, dial):
    """What counts is the file as it is when the answer is given."""
    broker = guarded(users=endless("slow") + endless("gone"))
    slow, gone = dial(broker), dial(broker)
    slow.send(connect_packet(V311, "slow", username="slow", password="s"))
    gone.send(connect_packet(V311, "gone", username="gone", password="g"))
    broker.wait_log("New connection from .*")
    wait_for(lambda: broker.log().count("New connection") == 2, "connections")
    write(broker, "users", line("slow", "s", 1))
    reload(broker)
    slow.expect(CONNACK, reason=0)
    gone.expect(CONNACK, reason=5)
    gone.expect_closed()


def test_reload_that_lets_everybody_in(guarded, dial):
    """Whoever waits for a check that is not asked for any more is in at once."""
    broker = guarded(users=endless("slow"))
    slow = dial(broker)
    slow.send(connect_packet(V311, "slow", username="slow", password="s"))
    broker.wait_log("New connection from .*")
    with open(broker.path("midge.conf")) as f:
        conf = f.read()
    write(broker, "midge.conf", re.sub("(?m)^password_file.*$", "allow_anonymous true", conf))
    reload(broker)
    slow.expect(CONNACK, reason=0)
    slow.ping()


def test_reload_of_rules(guarded, connect):
    """The new rules go for those who are there at once, for what waits too, and for offline sessions."""
    broker = guarded(rules="user alice\ntopic #\nuser bob\ntopic read a\n")
    alice = connect(broker=broker, username="alice", password="a")
    bob = connect(broker=broker, username="bob", password="b")
    away = connect("away", broker=broker, clean=False, username="bob", password="b")
    bob.subscribe("#")
    away.subscribe("#", qos=1)
    away.disconnect()
    alice.publish("a", "1", qos=1)
    bob.expect_publish("a", "1")
    write(broker, "rules", "user alice\ntopic #\nuser bob\ntopic read b\n")
    reload(broker)
    alice.publish("a", "2", qos=1)
    alice.publish("b", "3", qos=1)
    bob.expect_publish("b", "3")
    bob.nothing()
    away = connect("away", broker=broker, clean=False, username="bob", password="b")
    away.expect_publish("b", "3")
    away.nothing()


def test_reload_with_messages_that_wait(guarded, connect):
    """What a connected client could not be sent yet is judged by the new rules; what was sent is finished."""
    broker = guarded(rules="user alice\ntopic #\nuser bob\ntopic read #\n")
    alice = connect(broker=broker, username="alice", password="a")
    bob = connect(broker=broker, version=V5, username="bob", password="b", properties={"receive_maximum": 1})
    bob.subscribe("#", qos=1)
    for topic in ("closed", "closed", "open"):
        alice.publish(topic, topic, qos=1)
    sent = bob.expect_publish("closed", flow=False)
    write(broker, "rules", "user alice\ntopic #\nuser bob\ntopic read open\n")
    reload(broker)
    alice.ping()        # the turn of the signal is over
    bob.ack(PUBACK, sent.pid)
    bob.expect_publish("open")
    bob.nothing()


@pytest.mark.parametrize("name", ["users", "rules"])
def test_reload_of_broken_files(guarded, connect, login, name):
    """Nothing changes, and the log says why."""
    broker = guarded(rules="user alice\ntopic a\n")
    alice = connect(broker=broker, username="alice", password="a")
    alice.subscribe("a")
    write(broker, "users", password_line("alice", "new"))
    write(broker, "rules", "user alice\ntopic b\n")
    with open(broker.path(name), "a") as f:
        f.write("bob:plain\n")
    mark = reload(broker)
    broker.wait_log(f"Error found at .*/{name}:", after=mark)
    broker.wait_log("that were loaded before stay in force", after=mark)
    alice.publish("a", "x", qos=1)
    alice.expect_publish("a", "x")
    assert login(broker, "alice", "a") == 0
    os.remove(broker.path(name))
    broker.wait_log("Unable to open", after=reload(broker))
    alice.nothing()


# Settings per listener

def test_per_listener_settings(new_broker, connect, dial, login):
    broker = new_broker(config="per_listener_settings true\nlistener {port} 127.0.0.1\npassword_file {dir}/users\n"
                               "acl_file {dir}/rules\nallow_zero_length_clientid false\nlistener {port2} 127.0.0.1\n"
                               "allow_anonymous true\nauto_id_prefix class-\nlistener {port3} 127.0.0.1\n", start=False)
    write(broker, "users", password_line("alice", "a"))
    write(broker, "rules", "user alice\ntopic read t\n")
    broker.start()
    second, third = ("127.0.0.1", broker.ports["port2"]), ("127.0.0.1", broker.ports["port3"])
    assert login(broker, None, None) == 5
    assert login(broker, "alice", "a", client_id="") == 2
    guarded = connect("x", broker=broker, username="alice", password="a")
    free = connect("", address=second, version=V5)
    assert free.connack.prop("assigned_client_identifier").startswith("class-")
    for address in (third,):
        for fields in ({}, {"username": "alice", "password": "a"}):
            client = dial(address=address)
            client.connect("y", reason=5, **fields)
    guarded.subscribe("#")
    free.subscribe("#")
    guarded.publish("t", "refused", qos=1)
    free.publish("t", "1", qos=1)
    free.publish("u", "2", qos=1)
    guarded.expect_publish("t", "1")
    free.expect_publish("t", "1")
    free.expect_publish("u", "2")
    guarded.nothing()
    free.nothing()


def test_a_session_moves_to_another_listener(new_broker, connect):
    """It is judged by the rules of the listener that its client came in by last."""
    broker = new_broker(config="per_listener_settings true\nlistener {port} 127.0.0.1\nallow_anonymous true\n"
                               "listener {port2} 127.0.0.1\nallow_anonymous true\nacl_file {dir}/rules\n", start=False)
    write(broker, "rules", "topic read open\n")
    broker.start()
    pub = connect(broker=broker)
    one = connect("x", broker=broker, clean=False)
    one.subscribe("#", qos=1)
    one.disconnect()
    pub.publish("closed", "1", qos=1)
    pub.publish("open", "2", qos=1)
    two = connect("x", address=("127.0.0.1", broker.ports["port2"]), clean=False)
    two.expect_publish("open", "2")
    pub.publish("closed", "3", qos=1)
    pub.publish("open", "4", qos=1)
    two.expect_publish("open", "4")
    two.nothing()


@pytest.mark.parametrize("config, text", [
    ("password_file {dir}/a\nper_listener_settings true\nlistener {port}\n", "must stand before"),
    ("per_listener_settings true\npassword_file {dir}/a\nlistener {port}\n", "below the listener line"),
    ("listener {port}\nplugin_opt_password_file {dir}/a\n", "before it must stand a plugin line"),
    ("listener {port}\nplugin /x/mosquitto_acl_file.so\nplugin_opt_password_file {dir}/a\n", "before it must stand"),
    ("listener {port}\nplugin /x/mosquitto_password_file.so\n", "needs a line plugin_opt_password_file"),
    ("listener {port}\nplugin /x/mosquitto_dynamic_security.so\n", "midge has no plugins"),
    ("listener {port}\nplugin_opt_config_file /x\n", "no plugin that would know it"),
    ("listener {port}\nplugin_use x\n", "no plugin_load line"),
    ("plugin_load x /x/mosquitto_acl_file.so\nlistener {port}\nplugin_use x\n", "plugin_opt_acl_file"),
    ("plugin_load x\nlistener {port}\n", "a name and a path"),
    ("password_file {dir}/a\nplugin_load x /x/mosquitto_password_file.so\nplugin_opt_password_file {dir}/b\n"
     "listener {port}\nplugin_use x\n", "two files password_file"),
])
def test_settings_that_contradict(new_broker, config, text):
    code, _, log = new_broker(config=config, start=False).run()
    assert code == 3
    assert text in log


@pytest.mark.parametrize("config", [
    "plugin /usr/lib/mosquitto_password_file.so\nplugin_opt_password_file {dir}/users\nplugin mosquitto_acl_file.so\n"
    "plugin_opt_acl_file {dir}/rules\n" + LISTENER,
    "auth_plugin /usr/lib/mosquitto_password_file.so\nauth_opt_password_file {dir}/users\nacl_file {dir}/rules\n" + LISTENER,
    "plugin_load pw /usr/lib/mosquitto_password_file.so\nplugin_opt_password_file {dir}/users\n"
    "plugin_load acl /usr/lib/mosquitto_acl_file.so\nplugin_opt_acl_file {dir}/rules\n" + LISTENER
    + "plugin_use pw\nplugin_use acl\n",
    "per_listener_settings true\nglobal_plugin mosquitto_password_file.so\nplugin_opt_password_file {dir}/users\n" + LISTENER
    + "acl_file {dir}/rules\n",
    "per_listener_settings true\n" + LISTENER + "plugin mosquitto_password_file.so\nplugin_opt_password_file {dir}/users\n"
    "plugin mosquitto_acl_file.so\nplugin_opt_acl_file {dir}/rules\nlistener_allow_anonymous true\n",
    LISTENER + "listener_allow_anonymous true\npassword_file {dir}/users\nacl_file {dir}/rules\n",
], ids=["plugin", "auth_plugin", "load and use", "global", "per listener", "listener_allow_anonymous"])
def test_plugin_lines_of_2_1(new_broker, connect, login, config):
    """The plugins that read password and ACL files are built in."""
    broker = new_broker(config=config, start=False)
    write(broker, "users", password_line("alice", "a"))
    write(broker, "rules", "user alice\ntopic read t\n")
    broker.start()
    assert login(broker, "alice", "x") == 5
    assert login(broker, None, None) == (0 if "anonymous true" in config else 5)
    client = connect(broker=broker, version=V5, username="alice", password="a")
    assert client.publish("t", "x", qos=1).reason == NOT_AUTHORIZED
    client.subscribe("t")


# The password tool

def passwd(*args, input=None, code=0, name=None):
    """Runs midge passwd; (stdout, stderr)."""
    words = [name] if name else command() + ["passwd"]
    done = subprocess.run([*words, *map(str, args)], input=input, capture_output=True, text=True)
    assert done.returncode == code, done
    return done.stdout, done.stderr


def test_passwd_by_both_tools_for_both_brokers(either, new_broker, login, tmp_path):
    """Files of Mosquitto's tool and of ours, in Mosquitto and in midge."""
    path = tmp_path / "users"
    tools = [[*MIDGE, "passwd"]] + ([[MOSQUITTO_PASSWD]] if MOSQUITTO_PASSWD else [])
    logins = []
    for n, tool in enumerate(tools):
        for k, flags in enumerate((["-c"] if n == 0 else [], ["-H", "sha512"], ["-H", "sha512-pbkdf2", "-I", "1000"])):
            user, password = f"user{n}{k}", f"pässwörd {n}{k}"
            subprocess.run([*tool, *flags, "-b", str(path), user, password], check=True, capture_output=True)
            logins.append((user, password))
    broker = new_broker("password_file {dir}/users", config=LISTENER, start=False)
    write(broker, "users", path.read_text(), 0o644)
    broker.start()
    for user, password in logins:
        assert login(broker, user, password) == 0
        assert login(broker, user, password + "x") == 5


def test_passwd_changes_and_deletes(tmp_path):
    path = tmp_path / "users"
    assert passwd("-c", "-b", path, "alice", "1")[0] == "Adding password for user alice\n"
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("a") as f:
        f.write("# comment\n\n")
    passwd("-b", path, "bob", "2")
    before = path.read_text().splitlines()
    os.chmod(path, 0o640)
    assert passwd("-b", path, "alice", "3")[0] == "Updating password for user alice\n"
    after = path.read_text().splitlines()
    assert after[0] != before[0] and after[0].startswith("alice:$7$101$") and after[1:] == before[1:]
    assert path.stat().st_mode & 0o777 == 0o640
    passwd("-D", path, "alice")
    assert path.read_text().splitlines() == before[1:]
    assert "User alice not found" in passwd("-D", path, "alice", code=1)[1]
    assert path.read_text().splitlines() == before[1:]
    assert os.listdir(tmp_path) == ["users"]


def test_passwd_keeps_the_owner_and_follows_links(tmp_path):
    path, link = tmp_path / "users", tmp_path / "link"
    passwd("-c", "-b", path, "alice", "1")
    if os.geteuid() == 0:
        os.chown(path, 12, 34)
    before = path.stat()
    link.symlink_to("users")
    passwd("-b", link, "bob", "2")
    assert link.is_symlink()
    assert (path.stat().st_uid, path.stat().st_gid) == (before.st_uid, before.st_gid)
    assert "bob:" in path.read_text()


def test_passwd_hashes_plain_files(new_broker, login, tmp_path):
    broker = new_broker("password_file {dir}/users", config=LISTENER, start=False)
    hashed = password_line("carol", "c")
    write(broker, "users", "alice:plain one\n# comment\n" + hashed + "bob:plain two\n")
    code, _, log = broker.run()
    assert code == 13
    remedy = re.search(r"Mend it with: midge passwd (.*)", log).group(1)
    passwd(*remedy.split())
    text = open(broker.path("users")).read()
    assert "plain" not in text and hashed in text and "# comment\n" in text
    broker.start()
    for user, password in (("alice", "plain one"), ("bob", "plain two"), ("carol", "c")):
        assert login(broker, user, password) == 0


def test_passwd_to_stdout():
    out = passwd("-c", "-b", "-", "alice", "1")[0]
    assert re.fullmatch(r"alice:\$7\$101\$[A-Za-z0-9+/]{16}\$[A-Za-z0-9+/]{86}==\n", out)
    assert out != passwd("-c", "-b", "-", "alice", "1")[0]


def test_passwd_asks_twice(tmp_path):
    """From a pipe, as scripts do; the password is not shown."""
    path = tmp_path / "users"
    out, _ = passwd("-c", path, "alice", input="secret\nsecret\n")
    assert out.startswith("Password: \nReenter password: \n") and "secret" not in out
    assert "do not match" in passwd(path, "alice", input="secret\nsecre\n", code=2)[1]
    for text in ("", "\n", "\n\n"):
        assert "Empty password" in passwd(path, "bob", input=text, code=1)[1]
    assert path.read_text().count("\n") == 1


def test_passwd_on_a_terminal(tmp_path):
    """Without echo."""
    path = tmp_path / "users"
    try:
        pid, fd = pty.fork()
    except OSError:
        pytest.skip("no terminals can be made here")
    if pid == 0:
        try:
            os.execvp(command()[0], [*command(), "passwd", "-c", str(path), "alice"])
        finally:
            os._exit(127)
    shown = b""
    for prompt in (b"Password: ", b"Reenter password: "):
        while not shown.endswith(prompt):
            shown += os.read(fd, 1000)
        os.write(fd, b"secret\n")
    try:
        while data := os.read(fd, 1000):
            shown += data
    except OSError:
        pass            # how Linux tells that the other side is closed
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"secret" not in shown
    assert path.read_text().startswith("alice:$7$")


@pytest.mark.parametrize("args, text", [
    (["-c", "-D", "f", "u"], "-c and -D cannot be used together"), (["-b", "-D", "f", "u", "p"], "-b and -D"),
    (["-c", "-U", "f"], "-c and -U"), (["-D", "-U", "f"], "-D and -U"), (["-H", "md5", "f", "u"], "Unknown hash type 'md5'"),
    (["-H", "argon2id", "f", "u"], "not supported"), (["-I", "0", "f", "u"], "iterations"), (["-I", "10000001", "f", "u"], "iterations"),
    (["-I", "1x", "f", "u"], "iterations"), (["-I"], "needs an argument"), (["-x", "f", "u"], "Unknown option"),
    (["-b", "none", "u", "p"], "Unable to open password file none. No such file or directory."),
    (["-D", "none", "u"], "Unable to open"), (["-U", "none"], "Unable to open"), (["-b", "f", "u"], "-b needs"), (["f"], "missing"),
    (["-b", "f", "u", "p", "x"], "too many"), (["-c", "-b", "f", "a:b", "p"], "must not contain the ':' character"),
    (["-c", "-b", "f", "a\1b", "p"], "control characters"), (["-c", "-b", "f", "", "p"], "empty"),
    (["-c", "-b", "f", "#a", "p"], "begin with '#'"), (["-c", "-b", "f", "a", ""], "Empty password"),
    (["-c", "-b", "f", "x" * 65536, "p"], "65535"), (["-c", "-b", "/proc/none/f", "a", "p"], "Unable to open"),
    (["-b", "/", "a", "p"], "Is a directory"),
], ids=lambda v: " ".join(v)[:20] if isinstance(v, list) else "")
def test_passwd_faults(args, text, tmp_path, monkeypatch):
    """Exit code 1, a line that says why, and no file is made."""
    monkeypatch.chdir(tmp_path)
    assert text in passwd(*args, code=1)[1]
    assert os.listdir(tmp_path) == []


def test_passwd_leaves_a_corrupt_file_alone(tmp_path):
    path = tmp_path / "users"
    path.write_text("alice:$7$x\nnonsense\n")
    assert "Corrupt password file at line 2" in passwd("-b", path, "bob", "1", code=1)[1]
    assert path.read_text() == "alice:$7$x\nnonsense\n"
    assert os.listdir(tmp_path) == ["users"]


def test_passwd_by_its_other_name(tmp_path):
    if len(command()) > 1:
        pytest.skip("an emulator is called by its own name")
    name = tmp_path / "mosquitto_passwd"
    name.symlink_to(command()[0])
    passwd("-c", "-b", tmp_path / "users", "alice", "1", name=str(name))
    assert "Usage: " in passwd("--help", name=str(name))[0]
    assert "Usage: midge passwd" in passwd(code=1)[0]
