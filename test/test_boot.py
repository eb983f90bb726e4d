"""The binaries on emulated Pis, from power on to power cut; `make boot-test` runs this with $BOOT set.

What is measured goes to build/boot-report.txt.
"""

import os
import re
import subprocess
import threading

import pytest

from boot import Pi
from wire import PUBACK, ROOT, Broker, Client, Closed, wait_for

pytestmark = [pytest.mark.skipif(not os.environ.get("BOOT"), reason="these are for `make boot-test`"),
              pytest.mark.limit(600)]

EMULATORS = {"armv6": "qemu-arm -cpu arm1176", "aarch64": "qemu-aarch64 -cpu cortex-a53"}

REPORT = os.path.join(ROOT, "build", "boot-report.txt")

PLAIN = ["log_dest file /var/log/midge/midge.log", "allow_anonymous true", "listener 1883"]

TLS = ["listener 8883", "certfile {etc}/broker.crt", "keyfile {etc}/broker.key"]

KEPT = ["persistence true", "persistence_location {var}/"]


def supports(target, lines, files):
    """Whether this binary has these options: it is asked, under qemu-user. Those to come are not tested yet."""
    words = os.environ.get("MIDGE")
    os.environ["MIDGE"] = f"{EMULATORS[target]} {os.path.join(ROOT, 'build', target, 'midge')}"
    broker = Broker(config="\n".join(lines).replace("listener 8883", "listener {port} 127.0.0.1")
                    .format(port="{port}", etc="{dir}", var="{dir}") + "\n")
    try:
        for name, content in files.items():
            with open(broker.path(name), "w") as f:
                f.write(content)
        broker.spawn()
        wait_for(lambda: broker.process.poll() is not None or "running" in broker.log(), "answer")
        return not re.search(r"(cannot be used|has no effect).* yet", broker.log())
    finally:
        if broker.process.poll() is not None:
            broker.wait()
        broker.cleanup()
        if words is None:
            del os.environ["MIDGE"]
        else:
            os.environ["MIDGE"] = words


def certificates(dir):
    """CA and broker certificate for 127.0.0.1, by make-certs: name -> text."""
    subprocess.run([os.path.join(ROOT, "cross", "make-certs"), "--dir", dir, "127.0.0.1"], check=True,
                   capture_output=True)
    found = {}
    for name in ("ca.crt", "broker.crt", "broker.key"):
        with open(os.path.join(dir, name)) as f:
            found[name] = f.read()
    return found


class Machine:
    """A Pi with what the tests of this file ask of it."""

    def __init__(self, model, target, dir):
        self.name = f"{target} on {model}"
        self.certs = os.path.join(dir, "certs")
        files = certificates(self.certs)
        self.tls = supports(target, TLS, files)
        self.kept = supports(target, KEPT + ["listener 8883"], {})
        lines = (KEPT if self.kept else []) + PLAIN + (TLS if self.tls else [])
        config = "".join(line + "\n" for line in lines).format(etc="/etc/midge", var="/var/lib/midge")
        self.binary = os.path.join(ROOT, "build", target, "midge")
        self.pi = Pi(model, self.binary, config, dir, files)

    def boot(self):
        self.pi.boot()
        self.pi.await_line(r"midge started")
        wait_for(lambda: self.connected("probe"), "connection", 30)

    def connected(self, name):
        """A connected client, or None: the emulated network accepts even when nobody is there yet."""
        client = Client(("127.0.0.1", self.pi.ports[0]), timeout=30)
        try:
            client.connect(name)
            return client
        except (Closed, OSError):
            client.close()

    def status(self, field):
        text = self.pi.run(f"grep {field} /proc/$(cat /run/midge.pid)/status")
        found = re.search(r"(\d+) kB", text)
        assert found, f"{text}\n{self.pi.console()}"
        return int(found.group(1))

    def report(self, what, value):
        with open(REPORT, "a") as f:
            f.write(f"{self.name}: {what}: {value}\n")


CASES = [("raspi0", "armv6"), ("virt", "armv6"), ("virt", "aarch64")]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(c))
def machine(request, tmp_path_factory):
    one = Machine(*request.param, str(tmp_path_factory.mktemp("boot")))
    try:
        one.boot()
        yield one
    finally:
        one.pi.end()


def exchange(port, *options):
    """mosquitto_pub and mosquitto_sub over the emulated network: a retained message, which needs no waiting."""
    common = ["-h", "127.0.0.1", "-p", str(port), "-t", "boot/test", "-q", "1", *options]
    subprocess.run(["mosquitto_pub", *common, "-r", "-m", "over the wire"], check=True, timeout=60)
    done = subprocess.run(["mosquitto_sub", *common, "-C", "1", "-W", "30"], check=True, timeout=60, capture_output=True,
                          text=True)
    assert done.stdout == "over the wire\n"


def test_plain(machine):
    exchange(machine.pi.ports[0])


def test_tls(machine):
    if not machine.tls:
        pytest.skip("this midge has no TLS yet")
    exchange(machine.pi.ports[1], "--cafile", os.path.join(machine.certs, "ca.crt"))


def test_service(machine):
    """The init script does there what it should, by its own BusyBox: user, status, reload, restart."""
    run = machine.pi.run
    assert re.search("Uid:\t88\t88", run("cat /proc/$(cat /run/midge.pid)/status"))
    assert re.search(r"midge runs \(process \d+\)", run("/etc/init.d/S50midge status"))
    before = run("cat /run/midge.pid")
    run("/etc/init.d/S50midge reload")
    assert run("cat /run/midge.pid") == before
    assert "midge started" in run("/etc/init.d/S50midge restart")
    assert run("cat /run/midge.pid") != before
    exchange(machine.pi.ports[0])


def test_figures(machine):
    """Size, memory and start are written down; each within what a Pi Zero can spare."""
    size = os.path.getsize(machine.binary)
    machine.pi.run("/etc/init.d/S50midge restart")
    empty = machine.status("VmRSS")
    clients = [machine.connected(f"c{i}") for i in range(20)]
    full = machine.status("VmRSS")
    for client in clients:
        client.close()
    text = machine.pi.run("cat /proc/uptime; midge -p 1884 2>/run/log & while ! grep -q running /run/log; do :; done; "
                          "cat /proc/uptime; kill $!")
    start, end = (float(s) for s in re.findall(r"^([\d.]+) [\d.]+$", text, re.M))
    machine.report("size", f"{size} bytes")
    machine.report("resident after start", f"{empty} kB")
    machine.report("resident with 20 clients", f"{full} kB")
    machine.report("from exec to ready", f"{(end - start) * 1000:.0f} ms")
    assert empty < 1000 and full < 2000


class Publisher(threading.Thread):
    """Publishes numbers at QoS 1 until the connection ends; acknowledged are those that the broker has taken."""

    def __init__(self, client):
        super().__init__()
        self.client = client
        self.acknowledged = set()

    def run(self):
        try:
            while True:
                number = len(self.acknowledged)
                pid = self.client.publish("night/x", str(number), qos=1, flow=False)
                self.client.await_packet(PUBACK, pid)
                self.acknowledged.add(number)
        except (Closed, OSError):
            pass


def cut_in_mid_traffic(machine):
    """A lasting subscriber that is away, a publisher, then the plug is pulled; what had been acknowledged."""
    night = machine.connected("night-before")
    night.close()
    night = Client(("127.0.0.1", machine.pi.ports[0]), timeout=30)
    night.connect("night", clean=False)
    night.subscribe("night/#", qos=1)
    night.disconnect()
    publisher = Publisher(machine.connected("day"))
    publisher.start()
    wait_for(lambda: len(publisher.acknowledged) >= 300 or not publisher.is_alive(), "traffic", 60)
    assert publisher.is_alive()
    machine.pi.pull_the_plug()
    publisher.join()
    publisher.client.close()
    return publisher.acknowledged


def test_power_cut(machine):
    """After the plug is pulled it boots and serves; with storage every acknowledged message is there."""
    acknowledged = cut_in_mid_traffic(machine)
    machine.boot()
    exchange(machine.pi.ports[0])
    machine.report("acknowledged before the power cut", len(acknowledged))
    if not machine.kept:
        pytest.skip("boots and serves; what was acknowledged is not on disk yet: this midge has no persistence")
    every_acknowledged_message(machine, acknowledged)


def every_acknowledged_message(machine, acknowledged):
    night = Client(("127.0.0.1", machine.pi.ports[0]), timeout=30)
    night.connect("night", clean=False)
    assert night.connack.session_present
    found = set()
    while not acknowledged <= found:
        found.add(int(night.expect_publish("night/x").payload))
    night.close()
    machine.report("found after it", len(acknowledged & found))


def test_year_2038(machine):
    """When 32-bit time ends it goes on: the log has the right time, messages arrive, and it can be started.

    The last test, as BusyBox of the first Pis has 32-bit time and stumbles over files of then."""
    run = machine.pi.run
    run(f"date -s @{2**31 - 8}")

    def stamp(log="/var/log/midge/midge.log"):
        return int("0" + run(f"tail -n 1 {log}").partition(":")[0])
    exchange(machine.pi.ports[0])
    assert 2**31 - 8 <= stamp()

    def later():
        exchange(machine.pi.ports[0])
        return stamp() >= 2**31
    wait_for(later, "end of 32-bit time", 60)
    run("(midge -p 1884 2>/run/second &)")
    wait_for(lambda: "running" in run("cat /run/second"), "second broker", 60)
    assert 2**31 <= stamp("/run/second") < 2**31 + 3600
