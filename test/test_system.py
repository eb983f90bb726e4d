"""The system fails the broker: a full disk, a clock that jumps, a process that did not run for a while (descriptors:
test_loop.py; processes: test_store_disk.py; the log: test_log.py). Each has a defined outcome, and who is connected goes on."""

import os
import resource
import signal
import time

import pytest

from tls import preload
from wire import DISCONNECT, PINGRESP, PUBACK, V5, pingreq, publish, wait_for

YEAR = 366 * 24 * 3600


class Clock:
    """The clocks of a broker, see clock.c."""

    def __init__(self, directory):
        self.path = os.path.join(directory, "jumps")
        self.jump(0, 0)

    def jump(self, day=0, run=0):
        """The seconds that the time of day, and the time that has passed, are ahead of the true ones."""
        with open(self.path + ".new", "w") as f:
            f.write(f"{day} {run}\n")
        os.chmod(self.path + ".new", 0o644)
        os.rename(self.path + ".new", self.path)


@pytest.fixture
def jumping(new_broker, tmp_path):
    """jumping(*lines): a broker and its Clock."""
    def create(*lines):
        broker = new_broker(*lines, "sys_interval 0", start=False)
        clock = Clock(broker.dir)
        library = preload("clock.c", str(tmp_path))
        for path in [tmp_path, *tmp_path.parents]:
            if str(path).startswith("/tmp/"):
                os.chmod(path, 0o755)
        broker.env = {**library, "CLOCK_FILE": clock.path}
        return broker.start(), clock
    return create


@pytest.mark.parametrize("years", [20, -20])
def test_clock_jumps(jumping, connect, years):
    """The time of day is set by years: nothing expires or is late for that, while running and at the next start."""
    broker, clock = jumping("persistence true", "persistence_location {dir}/", "persistent_client_expiration 30d")
    inside = connect("inside", broker=broker, version=V5, keepalive=5)
    away = connect("away", broker=broker, version=V5, properties={"session_expiry_interval": 3600})
    away.subscribe("to/away", qos=1)
    away.disconnect()
    inside.publish("kept", "x", qos=1, retain=True, properties={"message_expiry_interval": 1000})
    inside.publish("to/away", "y", qos=1, properties={"message_expiry_interval": 1000})
    clock.jump(day=years * YEAR)
    inside.ping()
    connect("after", broker=broker).ping()
    year = time.gmtime(time.time() + years * YEAR).tm_year
    last = int(broker.wait_log(r"^(\d+): New client connected from \S+ as after").group(1))
    assert time.gmtime(last).tm_year in (year, year + 1)
    inside.subscribe("kept")
    inside.expect_publish("kept", "x")
    back = connect("away", broker=broker, version=V5, clean=False, properties={"session_expiry_interval": 3600})
    assert back.connack.session_present
    back.expect_publish("to/away", "y")
    clock.jump(day=0)
    inside.ping()
    inside.publish("kept", "z", qos=1, retain=True)
    inside.expect_publish("kept", "z")


def test_stopped_for_a_minute(jumping, connect):
    """The process did not run for longer than every keep alive: who has sent in time, as far as it could, is
    heard, the others are told why they are let go, and their wills are published."""
    broker, clock = jumping()
    alive = connect("alive", broker=broker, version=V5, keepalive=20)
    silent = connect("silent", broker=broker, version=V5, keepalive=20)
    patient = connect("patient", broker=broker, version=V5, keepalive=0)
    patient.subscribe("t")
    alive.ping()
    broker.signal(signal.SIGSTOP)
    alive.send(pingreq(), publish(V5, "t", "from the time between"))
    clock.jump(run=60)
    broker.signal(signal.SIGCONT)
    alive.expect(PINGRESP)
    patient.expect_publish("t", "from the time between")
    assert silent.expect(DISCONNECT).reason == 0x8D
    broker.wait_log("Client silent .* disconnected: exceeded timeout")
    alive.ping()
    connect("silent", broker=broker).ping()


def test_full_disk(new_broker, connect):
    """The files may not grow any more: nothing is acknowledged that is not on the disk, and the rest goes on. When
    there is room again all that waited is acknowledged, and there after a power cut."""
    broker = new_broker("persistence true", "persistence_location {dir}/", "sys_interval 0", "user root")
    inside = connect("inside", broker=broker, version=V5, timeout=20)
    lasting = connect("lasting", broker=broker, version=V5, timeout=20, properties={"session_expiry_interval": 100})
    lasting.subscribe("own")
    for i in range(10):
        assert inside.publish(f"k/{i}", "x", qos=1, retain=True).reason < 0x80
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    for i in range(10, 300):           # what is acknowledged later is none of the test's promises
        inside.publish(f"k/{i}", bytes(10_000), qos=1, retain=True, flow=False)
    broker.wait_log("Error: .*File too large", timeout=20)

    def refused():
        """At once by one who waits for nothing, when the trouble is no longer that of a moment."""
        client = connect(broker=broker, version=V5, timeout=20)
        client.publish("refused", "x", qos=1, retain=True, flow=False)
        client.ping()
        return [p for p in client.inbox if p.type == PUBACK and p.reason in (0x83, 0x97)]
    wait_for(refused, "refusal", timeout=20)
    lasting.publish("own", "y")
    lasting.expect_publish("own", "y")
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for _ in range(290):
        inside.expect(PUBACK, timeout=30)
    broker.kill()
    broker.start()
    reader = connect("reader", broker=broker, timeout=20)
    reader.subscribe("k/#")
    assert {reader.expect_publish().topic for _ in range(300)} == {f"k/{i}" for i in range(300)}
