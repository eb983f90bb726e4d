"""Every allocation can fail: the broker with each of its allocations made to fail, one after the other.

midge-alloc is the broker with test/alloc.c between it and the allocator. Each scene below is played again and
again, and in the Nth play the Nth allocation that it causes fails, or that one and all after it. Whoever is in
the scene may be refused or cut off; but the broker goes on, at once, and afterwards

  - a client that was connected all the time still is, and is served,
  - whatever was acknowledged (QoS 1 and 2) reaches a subscriber that was away, in its old session,
  - nobody is let in, and nobody may write, who may not,
  - at the end nothing is left in the ledger (the broker asserts it) or anywhere else (LeakSanitizer, with
    make asan).

The suite plays a part of them; make faults, which sets ALLOC_ALL, all.
"""

import contextlib
import itertools
import mmap
import os
import random
import re
import signal
import ssl
import struct

import pytest

from tls import mutual, trusting
from wire import (PINGRESP, PUBCOMP, PUBLISH, PUBREC, ROOT, V31, V311, V5, Client, Closed, Will, ack, pingreq,
                  publish, subscribe, wait_for)
from wire import PUBACK, Broker, password_line

PROGRAM = os.path.join(ROOT, os.environ.get("BUILD", "build"), "midge-alloc")
ALL = bool(os.environ.get("ALLOC_ALL"))
PLAYS = 6           # of a scene in the suite, per way of failing
LASTING = {"session_expiry_interval": 1000}

CONFIG = """listener {port} 127.0.0.1
persistence true
persistence_location {dir}/
user root
connect_timeout 5
login_delay_max 0
max_packet_size 2000000
password_file {dir}/users
acl_file {dir}/rules
"""
RULES = """user amy
topic readwrite #
pattern readwrite own/%u/%c/#
user bob
topic read public/#
"""

pytestmark = pytest.mark.limit(3600 if ALL else 120)


class Control:
    """What alloc.c reads: calls so far, the first and the last one that fail, how many have failed."""

    def __init__(self, path):
        with open(path, "wb") as f:
            f.write(bytes(16))
        with open(path, "r+b") as f:
            self._map = mmap.mmap(f.fileno(), 16)

    def arm(self, first, last):
        self._map[:] = struct.pack("=4I", 0, first, last, 0)

    def disarm(self):
        """The number of calls, and of those that failed, since arm."""
        calls, _, _, failed = struct.unpack("=4I", self._map[:])
        self.arm(0, 0)
        return calls, failed


class Stage:
    """A broker, who watches it, and what the scenes need."""

    def __init__(self, pki, directory):
        self.control = Control(os.path.join(directory, "control"))
        self.context = trusting(pki.ca, pki.client())
        self.broker = Broker(config=CONFIG + mutual(pki.server(), "use_identity_as_username false",
                                                    port="port2"),
                             env={"ALLOC_CONTROL": os.path.join(directory, "control")})
        with open(self.broker.path("users"), "w") as f:
            f.write(password_line("amy", "a") + password_line("bob", "b"))
        with open(self.broker.path("rules"), "w") as f:
            f.write(RULES)
        self.names = itertools.count(1)
        self.clients = []
        self.acked = set()
        self.kept = False       # the keeper has its session

    def start(self):
        self.resume()
        self.keeper().disconnect()

    def resume(self):
        self.broker.start()
        self.watcher = self.client(V5)
        self.clients.clear()    # those that check closes
        self.watcher.connect("watcher", username="amy", password="a", keepalive=0)
        self.watcher.subscribe("watch/#", qos=1)

    def keeper(self):
        """The subscriber that is away most of the time; its session must be there again."""
        keeper = self.client(V5)
        keeper.connect("keeper", clean=False, username="amy", password="a", properties=LASTING)
        assert keeper.connack.session_present == self.kept, "the session of the keeper is gone"
        if not self.kept:
            keeper.subscribe("t/#", qos=2)
        self.kept = True
        return keeper

    def client(self, version, secure=False):
        """A connection; one that the broker closes at once raises Closed."""
        address = ("127.0.0.1", self.broker.ports["port2" if secure else "port"])
        try:
            client = Client(address, version, 10, context=self.context if secure else None)
        except (ssl.SSLError, ConnectionError):
            raise Closed("closed in the handshake") from None
        self.clients.append(client)
        return client

    def login(self, version, secure=False, client_id=None, **fields):
        client = self.client(version, secure)
        client.connect(client_id or f"c{next(self.names)}", username="amy", password="a", **fields)
        return client

    def publish(self, client, topic, qos, payload=b"", **fields):
        """PUBLISH to t/...; remembered if it was acknowledged."""
        payload = f"{next(self.names)} ".encode() + payload
        answer = client.publish("t/" + topic, payload, qos, **fields)
        if qos and answer.reason >= 0x80:
            raise Closed("refused")
        if qos:
            self.acked.add(payload)

    def signal(self, number):
        """Sends a signal and waits until the broker has taken it."""
        self.broker.signal(number)
        with open(f"/proc/{self.broker.pid}/status") as f:
            wait_for(lambda: f.seek(0) or not self._waits(f.read(), number), "end of the signal")

    @staticmethod
    def _waits(status, number):
        return int(re.search(r"ShdPnd:\s+(\w+)", status).group(1), 16) >> number - 1 & 1

    def play(self, scene):
        """Lets a scene run up to where somebody is cut off or refused."""
        try:
            scene(self)
        except (Closed, ssl.SSLError, ConnectionError):
            pass
        except AssertionError as e:
            if not re.match("closed inside a packet|not granted|expected reason|expected CONN|expected \\w+, got <DISCONNECT",
                            str(e)):
                raise

    def check(self):
        """What must be true whatever has failed."""
        assert self.broker.process.poll() is None, self.broker.tail()
        acked, self.acked = self.acked, set()
        for client in self.clients:
            client.close()
        self.clients.clear()
        word = f"word{next(self.names)}"
        self.watcher.publish("watch/me", word, qos=2)
        self.watcher.ack(PUBACK, self.watcher.await_packet(PUBLISH).pid)
        self._guest()
        keeper = self.keeper()
        self.watcher.publish("t/end", word, qos=1)
        while True:
            p = keeper.receive()
            if p.type == PUBLISH and p.qos:
                keeper.ack(PUBACK if p.qos == 1 else PUBREC, p.pid)
            elif p.type != PUBLISH:
                keeper.ack(PUBCOMP, p.pid)
                continue
            if p.payload == word.encode():
                break
            acked.discard(p.payload)
        assert not acked, f"acknowledged, but lost: {acked}"
        keeper.disconnect()

    def _guest(self):
        """A wrong password is refused, and bob may only read."""
        stranger = self.client(V5)
        stranger.connect("stranger", username="amy", password="b", reason=0x87)
        bob = self.client(V5)
        bob.connect("bob", username="bob", password="b")
        assert bob.publish("t/no", "no", qos=1).reason == 0x87

    def again(self):
        """After a fault: a broker for the other scenes, whatever has become of this one."""
        self.control.disarm()
        try:
            self.broker.kill()
        except AssertionError:
            pass        # what a sanitizer has said is told already
        self.acked.clear()
        self.resume()

    def stop(self):
        self.broker.cleanup()


# Scenes: whatever a client can make the broker do.

def life(version, secure=False):
    """All packets: a will, subscriptions, each QoS, retained messages, the end."""
    def scene(stage):
        fields = dict(properties={"topic_alias_maximum": 5, "receive_maximum": 10}) if version == V5 else {}
        props = {"user_property": ("k", "v"), "content_type": "c", "message_expiry_interval": 100,
                 "correlation_data": b"d", "response_topic": "r"} if version == V5 else None
        c = stage.login(version, secure, will=Will("t/will", b"gone", 1, True), **fields)
        c.subscribe("t/+/x", "t/a/#", "u", qos=2, check=False,
                    properties={"subscription_identifier": 7} if version == V5 else None)
        c.subscribe("$SYS/#", check=False)
        for qos in 0, 1, 2:
            stage.publish(c, "a/x", qos, properties=props)
            stage.publish(c, "a/r", qos, retain=True)
        if version == V5:
            c.publish("t/a/alias", "1", properties={"topic_alias": 3})
            c.publish("", "2", properties={"topic_alias": 3})
        c.subscribe("t/a/#", qos=1, check=False)
        c.ping()
        for p in [p for p in c.inbox if p.type == PUBLISH and p.qos]:
            c.ack(PUBACK if p.qos == 1 else PUBREC, p.pid)
        c.ping()
        c.publish("t/a/r", "", retain=True)
        c.unsubscribe("t/+/x", "u")
        if version == V5:       # with its will
            c.disconnect(4)
        else:
            c.close()
    return scene


def lasting(version):
    """A session with messages that waits for its client, with what was not acknowledged."""
    def scene(stage):
        fields = dict(properties={"receive_maximum": 3, **LASTING}) if version == V5 else {}
        name = f"lasting{next(stage.names)}"
        a = stage.login(version, client_id=name, clean=False, **fields)
        a.subscribe("t/l/#", qos=2)
        b = stage.login(version)
        for qos in 1, 2, 0, 2:
            stage.publish(b, "l/1", qos)
        a.expect_publish(qos=1, flow=False)
        a.close()
        for qos in 1, 2, 1, 2, 1, 2:
            stage.publish(b, "l/2", qos)
        a = stage.login(version, client_id=name, clean=False, **fields)
        for _ in range(4):
            p = a.await_packet(PUBLISH)
            a.ack(PUBACK if p.qos == 1 else PUBREC, p.pid)
        a.publish("t/l/3", "x", qos=2, flow=False)
        a.await_packet(PUBREC)
        other = stage.login(version, client_id=name, clean=False, **fields)   # takes it over
        other.ping()
        stage.login(version, client_id=name, clean=True).disconnect()
    return scene


def large(version, secure=False):
    """Packets that come in parts, payloads that are not copied, a reader that stands still."""
    def scene(stage):
        a = stage.login(version, secure)
        a.subscribe("t/big", qos=1)
        b = stage.login(version, secure)
        whole = publish(version, "t/big", b"z" * 300000)
        for part in whole[:1], whole[1:9], whole[9:70000], whole[70000:]:
            b.send(part)
            a.ping()
        for i in range(6):
            stage.publish(b, "big", i % 2, b"y" * 100000)
        for i in range(100):
            b.send(publish(version, "t/big", b"n" * 5000))
        b.ping()
        for _ in range(7):
            p = a.await_packet(PUBLISH)
            if p.qos:
                a.ack(PUBACK, p.pid)
        a.ping()
    return scene


def crowd(stage):
    """Retained messages, shared subscriptions, more filters and sessions than tables have room for."""
    a = stage.login(V5)
    for i in range(20):
        a.publish(f"t/many/{i}/x", "r", retain=True)
    clients = [stage.login(V5, properties={"receive_maximum": 2}) for _ in range(4)]
    for i, c in enumerate(clients):
        c.subscribe("$share/g/t/s", f"t/many/+/{i}", "t/many/#", *(f"f{i}/{k}" for k in range(30)), qos=1,
                    check=False)
    for i in range(12):
        stage.publish(a, "s", 1)
    clients[0].close()
    for i in range(4):
        stage.publish(a, "s", 2)
    for c in clients[1:]:
        c.ping()
        c.unsubscribe("$share/g/t/s", "t/many/#")
    for i in range(20):
        a.publish(f"t/many/{i}/x", "", retain=True)
    a.ping()


def wills(stage):
    """Delayed wills and sessions that end by themselves."""
    for delay in 0, 1000:
        c = stage.login(V5, properties={"session_expiry_interval": 1000}, client_id=f"will{delay}",
                        will=Will("t/will", b"w" * 40, 2, True, {"will_delay_interval": delay}))
        c.subscribe("t/w", qos=1, check=False)
        c.close(reset=True)
        stage.login(V5, client_id=f"will{delay}").disconnect()


def faults(stage):
    """What a client does wrong."""
    for data in b"\x00\x00", publish(V5, "t/#", "x"), subscribe(V5, 1, [("a/#/b", 0)]), ack(V5, PUBACK, 9), \
            publish(V5, "t/x", "x", qos=1, pid=3, properties={"topic_alias": 99}):
        c = stage.login(V5)
        c.send(data, pingreq())
        try:
            while c.receive().type != PINGRESP:
                pass
        except Closed:
            pass


def tls(stage):
    """A handshake with certificates of both sides, one that is resumed, one that is broken off."""
    first = stage.login(V5, secure=True)
    first.publish("t/x", "x", qos=1)
    stage.login(V311, secure=True).ping()
    raw = Client(("127.0.0.1", stage.broker.ports["port2"]))
    stage.clients.append(raw)
    raw.send(b"\x16\x03\x01\x00\x05hello")
    raw.sock.recv(100)


def reload(stage):
    """SIGHUP: the configuration, passwords, rules and certificates anew."""
    stage.signal(signal.SIGHUP)
    stage.login(V5).ping()      # in a later turn


def snapshot(stage):
    """SIGUSR1 and SIGUSR2: the state is written anew, and told."""
    stage.signal(signal.SIGUSR1)
    stage.signal(signal.SIGUSR2)
    c = stage.login(V5)
    for i in range(5):
        stage.publish(c, "snap", 1)


SCENES = {
    **{f"life-{v}": life(v) for v in (V31, V311, V5)},
    **{f"lasting-{v}": lasting(v) for v in (V31, V311, V5)},
    "life-tls": life(V5, True), "large": large(V5), "large-tls": large(V311, True),
    "crowd": crowd, "wills": wills, "faults": faults, "reload": reload, "snapshot": snapshot, "tls": tls,
}


@contextlib.contextmanager
def staged(pki, directory):
    before = os.environ.get("MIDGE")
    os.environ["MIDGE"] = PROGRAM
    made = Stage(pki, str(directory))
    try:
        made.start()
        yield made
        made.stop()
    finally:
        made.broker.cleanup()
        del os.environ["MIDGE"]
        if before is not None:
            os.environ["MIDGE"] = before


@pytest.fixture(scope="module")
def stage(pki, tmp_path_factory):
    with staged(pki, tmp_path_factory.mktemp("alloc")) as made:
        yield made


@pytest.fixture
def small_stage(pki, tmp_path):
    """One without what the other scenes have left."""
    with staged(pki, tmp_path) as made:
        yield made


def chosen(n, seed):
    """The plays, of n that there are."""
    if ALL or n <= PLAYS:
        return range(1, n + 1)
    return sorted(random.Random(seed).sample(range(1, n + 1), PLAYS))


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("forever", (False, True), ids=("once", "from-then-on"))
def test_allocations_of_a_scene(stage, name, forever):
    scene = SCENES[name]
    stage.control.arm(0, 0)
    scene(stage)
    calls, _ = stage.control.disarm()
    assert calls > 0
    stage.check()
    hit = 0
    for n in chosen(calls, name):
        stage.control.arm(n, 2**32 - 1 if forever else n)
        try:
            stage.play(scene)
            hit += stage.control.disarm()[1] > 0
            stage.check()
        except (AssertionError, OSError) as e:
            tail = stage.broker.tail()
            stage.again()
            raise AssertionError(f"allocation {n} of {calls}: {e}\n{tail}") from e
    assert hit > 0


def begin(stage):
    """Starts the broker: the exit code and the log if it ends, None if it runs; then it is stopped."""
    broker = stage.broker
    broker.spawn()
    wait_for(lambda: broker.process.poll() is not None or re.search("version \\S+ running", broker.log()),
             "start or end", 20)
    if broker.process.poll() is not None:
        return broker.wait(), broker.log()
    calls = stage.control.disarm()
    broker.stop()
    stage.control.arm(0, 0)
    return None, calls[0]


def test_allocations_of_a_start(small_stage):
    """The broker starts or says why not, and nothing that it had on the disk is gone."""
    stage = small_stage
    for scene in wills, lasting(V5):    # in files that continue each other
        scene(stage)
        stage.watcher.disconnect()
        stage.broker.stop()
        stage.control.arm(0, 0)
        stage.resume()
    stage.watcher.disconnect()
    stage.broker.stop()
    stage.control.arm(0, 0)
    _, calls = begin(stage)
    ended, wrong = 0, []
    for n in chosen(calls, "start"):
        stage.control.arm(n, n)
        code, log = begin(stage)
        ended += code is not None
        if code not in (None, 1, 3, 13) or (code and "Error" not in log):
            wrong.append(f"allocation {n} of {calls}: code {code}\n{log}")
    assert not wrong, "\n".join(wrong)
    assert ended > 0
    stage.control.arm(0, 0)
    stage.resume()
    stage.check()
