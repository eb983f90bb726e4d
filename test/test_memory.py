"""memory_limit: whatever the clients do, the process stays below it, tells what gives way, and gives the memory
back when it is no longer needed. Beside the limit it has EXTRA for itself and for what lies between the blocks."""

import os
import re
import select

import pytest

from wire import (CONNACK, PUBACK, V311, V5, Will, command, connect as connect_packet, decode, publish,
                  wait_for)

LIMIT = 32_000_000
EXTRA = 6_000_000
SMALL = ("sys_interval 1", "connection_messages false", f"memory_limit {LIMIT}")


def resident(broker):
    """Bytes; None under AddressSanitizer and in an emulator, where they mean nothing."""
    if "asan" in os.environ.get("MIDGE", "") or len(command()) > 1:
        return None
    with open(f"/proc/{broker.pid}/smaps_rollup") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Rss:")) * 1024


def under_limit(broker):
    used = resident(broker)
    assert used is None or used < LIMIT + EXTRA
    return used


def falls_back(broker, to=EXTRA):
    wait_for(lambda: (resident(broker) or 0) < to, "memory that falls back", timeout=20)


class Watch:
    """One who looks at what $SYS says about the memory."""

    def __init__(self, client):
        self.client = client
        client.subscribe("$SYS/broker/memory/#")

    def await_more(self, name):
        """Until that counter is not 0."""
        while True:
            p = self.client.expect_publish(timeout=20)
            if p.topic == f"$SYS/broker/memory/{name}" and int(p.payload):
                return


def short_of(broker, words):
    """The line that tells what gives way, which is there once."""
    regex = rf"Warning: Memory is short \(\d+ of {LIMIT} bytes, memory_limit\): {words}\."
    broker.wait_log(regex)
    assert len(re.findall(regex, broker.log())) == 1


class Flood:
    """A publisher who sends as fast as is possible, and reads what is answered without waiting for it."""

    def __init__(self, client):
        self.sock = client.sock
        self.sock.setblocking(False)
        self.version = client.version
        self.answers = bytearray()

    def send(self, data):
        view = memoryview(data)
        while view:
            _, writable, _ = select.select([self.sock], [self.sock], [], 20)
            self.read()
            if writable:
                try:
                    view = view[self.sock.send(view):]
                except BlockingIOError:
                    pass

    def read(self):
        try:
            self.answers += self.sock.recv(1 << 20)
        except BlockingIOError:
            pass

    def reasons(self, n):
        """The reason codes of n PUBACKs of 5.0."""
        found = []
        at = 0
        while len(found) < n:
            while len(self.answers) - at >= 2 and len(self.answers) - at >= 2 + self.answers[at + 1]:
                end = at + 2 + self.answers[at + 1]
                p = decode(self.version, bytes(self.answers[at:end]))
                assert p.type == PUBACK
                found.append(p.reason)
                at = end
            if len(found) < n:
                assert select.select([self.sock], [], [], 20)[0], "no more answers"
                self.read()
        return found


def test_default_limit(new_broker):
    """A quarter of the machine's memory, told at the start."""
    if len(command()) > 1:
        pytest.skip("an emulator of 32 bits tells what is left of that number")
    broker = new_broker()
    limit = int(broker.wait_log(r"Limit: (\d+) bytes of memory for all clients \(memory_limit\)\.").group(1))
    assert limit == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") // 4


def test_no_limit(new_broker, connect):
    broker = new_broker("memory_limit 0", "sys_interval 1")
    assert "memory_limit" not in broker.log()
    client = connect(broker=broker)
    client.subscribe("$SYS/broker/memory/limit")
    client.expect_publish("$SYS/broker/memory/limit", "0")


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.limit(180)
def test_stalled_subscribers(new_broker, connect, qos):
    """Twenty take nothing of what is sent to them, 5000 messages of 10 kB each: a gigabyte."""
    broker = new_broker(*SMALL, "max_queued_messages 0")
    other = connect("other", broker=broker, timeout=30)
    other.subscribe("other")
    watch = Watch(connect("watch", broker=broker))
    for i in range(20):
        s = connect(f"stalled{i}", broker=broker, receive_buffer=4096, version=V5, keepalive=0,
                    clean=i % 2 == 0, properties={"session_expiry_interval": 100 * (i % 2)})
        s.subscribe(f"to/{i}", qos=qos)
    flood = Flood(connect("flood", broker=broker, version=V5, keepalive=0))
    payload = bytes(10_000)
    for n in range(250):
        flood.send(b"".join(publish(V5, f"to/{i}", payload, qos, pid=1 + i if qos else None)
                            for i in range(20)) * 20)
        if n % 10 == 0:
            under_limit(broker)
            other.publish("other", "still here", qos=0)
            other.expect_publish("other", "still here")
    under_limit(broker)
    if qos:
        assert set(flood.reasons(100_000)) == {0, 0x10, 0x97}
        short_of(broker, "messages of QoS 1 and 2 are refused")
        short_of(broker, "the slowest readers are disconnected")
        watch.await_more("disconnected")
    else:
        short_of(broker, "messages of QoS 0 that would have to wait are dropped")
        watch.await_more("dropped/qos0")
        assert "disconnected" not in broker.log()
    for i in range(20):         # who has a session is let in, and this ends it
        client = connect(f"stalled{i}", broker=broker, version=V5, reason=None)
        assert client.connack.reason == 0 or i % 2 == 0
    broker.wait_log(r"Memory is no longer short: \d+ of \d+ bytes\.")
    falls_back(broker)
    other.ping()


@pytest.mark.limit(120)
def test_retained_messages(new_broker, connect):
    """10 000 of 10 kB each: refused from some point on, but whoever comes is let in, and they can be deleted."""
    broker = new_broker(*SMALL)
    watch = Watch(connect("watch", broker=broker, timeout=20))
    pub = connect("pub", broker=broker, version=V5)
    kept = 0
    for i in range(10_000):
        reason = pub.publish(f"k/{i}", bytes(10_000), qos=1, retain=True).reason if i < 3000 else 0x97
        kept += reason < 0x80
    assert LIMIT / 2 < kept * 10_000 < LIMIT
    under_limit(broker)
    short_of(broker, "new retained messages and subscriptions are refused")
    watch.await_more("refused/lasting")
    other = connect("other", broker=broker, version=V5)
    other.subscribe("x", check=False)
    assert other.publish("k/0", bytes(10_000), qos=1, retain=True).reason < 0x80     # in the place of the old one
    for i in range(kept):
        other.publish(f"k/{i}", b"", qos=1, retain=True)
    broker.wait_log("Memory is no longer short")
    falls_back(broker)
    other.subscribe("x")


@pytest.mark.limit(120)
def test_sessions(new_broker, connect):
    """Ever new sessions that are to stay for ever: new clients are refused in the end, those that have one are not."""
    broker = new_broker("sys_interval 1", "connection_messages false", "memory_limit 4000000")
    watch = Watch(connect("watch", broker=broker, timeout=20))
    known = 0
    refused = None
    for i in range(10_000):
        client = connect(f"s{i}" + "x" * 200, broker=broker, version=V5, reason=None,
                         properties={"session_expiry_interval": 100})
        client.disconnect() if client.connack.reason == 0 else client.close()
        if client.connack.reason:
            refused = client.connack
            break
        known += 1
    assert refused and refused.reason == 0x97
    assert known > 4000
    broker.wait_log(r"disconnected: quota exceeded\. Cause: memory is short \(memory_limit\)\.")
    broker.wait_log(r"Warning: Memory is short .* clients without a session are refused\.")
    watch.await_more("refused/clients")
    connect("s0" + "x" * 200, broker=broker, version=V5, clean=False).ping()
    connect("new", broker=broker, version=V311, reason=3)


def test_deep_topics(new_broker, connect):
    """Retained messages and subscriptions with 200 levels each, none of them shared with another."""
    broker = new_broker(*SMALL, "max_subscriptions 0")
    client = connect("deep", broker=broker, version=V5, timeout=20)
    reason = n = 0
    while reason < 0x80:
        reason = client.publish("/".join(f"{n}" for _ in range(200)), "x", qos=1, retain=True).reason
        n += 1
        assert n < 10_000
    under_limit(broker)
    for i in range(n):
        client.publish("/".join(f"{i}" for _ in range(200)), "", qos=1, retain=True)
    falls_back(broker)
    reason = n = 0
    while reason < 0x80:
        reason = client.subscribe(*["/".join(f"{n}.{i}" for _ in range(200)) for i in range(50)],
                                  check=False).reasons[-1]
        n += 1
        assert n < 1000
    under_limit(broker)
    connect("other", broker=broker).ping()
    client.disconnect()
    falls_back(broker)


@pytest.mark.parametrize("version, refused", [(V311, 0x80), (V5, 0x97)])
def test_max_subscriptions(new_broker, connect, version, refused):
    """So many of one session; long filters count more; others may have theirs."""
    broker = new_broker("max_subscriptions 20")
    client = connect("many", broker=broker, version=version)
    assert client.subscribe(*[f"f/{i}" for i in range(22)], check=False).reasons == [0] * 20 + [refused] * 2
    broker.wait_log(r"Denied SUBSCRIBE from many: it has as many subscriptions as max_subscriptions allows \(20\)\.")
    client.subscribe("f/3", qos=1)      # again, with another QoS
    client.unsubscribe("f/0")
    client.subscribe("g")
    deep = connect("deep", broker=broker, version=version)
    assert deep.subscribe(*["/".join(f"{i}" for _ in range(160)) for i in range(3)],
                          check=False).reasons == [0, 0, refused]
    deep.unsubscribe("/".join("1" for _ in range(160)))
    deep.subscribe("x" * 8000, "y")
    assert deep.subscribe("z", check=False).reasons == [refused]


def test_max_subscriptions_of_a_session_that_waits(new_broker, connect):
    """They are counted on after a restart."""
    broker = new_broker("max_subscriptions 3", "persistence true", "persistence_location {dir}/")
    client = connect("many", broker=broker, clean=False)
    client.subscribe("a", "b", "c")
    client.unsubscribe("c")
    client.disconnect()
    broker.restart()
    client = connect("many", broker=broker, clean=False)
    assert client.subscribe("d", "e", check=False).reasons == [0, 0x80]


@pytest.mark.limit(120)
def test_will_storm(new_broker, connect, dial):
    """A thousand wills of 50 kB at once, retained too, for readers who take nothing."""
    broker = new_broker(*SMALL)
    other = connect("other", broker=broker)
    for i in range(5):
        connect(f"stalled{i}", broker=broker, receive_buffer=4096, keepalive=0).subscribe("will/#", qos=1)
    clients = []
    for i in range(1000):
        client = dial(broker, version=V5)
        client.send(connect_packet(V5, f"w{i}", will=Will(f"will/{i}", bytes(50_000), 1, True)))
        if client.expect(CONNACK).reason == 0:
            clients.append(client)
    assert 100 < len(clients) < 1000
    under_limit(broker)
    for client in clients:
        client.close()
    wait_for(lambda: other.subscribe("$SYS/broker/clients/connected", check=False).reasons == [0],
             "subscription that is not refused", timeout=20)
    while other.expect_publish(timeout=20).payload not in [b"%d" % n for n in range(1, 7)]:
        pass
    under_limit(broker)
    other.ping()
