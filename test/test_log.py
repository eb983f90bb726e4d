"""The log: where lines go, what they look like, and that nobody who does not read them holds up the broker."""

import os
import re
import socket
import stat
import subprocess
import threading

import pytest

from wire import V5, V31, V311, Will, wait_for


def read(broker, name):
    with open(broker.path(name), errors="replace") as f:
        return f.read()


def wait_text(broker, name, regex):
    wait_for(lambda: os.path.exists(broker.path(name)) and re.search(regex, read(broker, name), re.M),
             f"/{regex}/ in {name}")


def started(new_broker, *lines, **options):
    """A broker that does not log to stderr: it runs when it answers."""
    broker = new_broker(*lines, start=False, **options)
    broker.spawn()
    wait_for(lambda: listens(broker), "listener")
    return broker


def listens(broker):
    assert broker.process.poll() is None, broker.log()
    try:
        socket.create_connection(broker.address).close()
        return True
    except ConnectionRefusedError:
        return False


# Destinations

def test_file(new_broker, connect):
    """Mode 0600, the same lines as elsewhere, nothing on stderr."""
    broker = started(new_broker, "log_dest file {dir}/log")
    connect("anna", broker=broker)
    wait_text(broker, "log", r"^\d+: New client connected from \S+ as anna ")
    assert stat.S_IMODE(os.stat(broker.path("log")).st_mode) == 0o600
    broker.stop()
    assert re.search(r"^\d+: midge version \S+ terminating$", read(broker, "log"), re.M)
    assert broker.log() == ""


def test_file_is_continued(new_broker):
    broker = new_broker("log_dest file {dir}/log", "log_dest stderr", start=False)
    with open(broker.path("log"), "w") as f:
        f.write("old\n")
    os.chmod(broker.path("log"), 0o666)
    broker.start()
    broker.stop()
    text = read(broker, "log")
    assert text.startswith("old\n") and "running" in text


def test_stdout_and_stderr(new_broker):
    broker = new_broker("log_dest stdout", "log_dest stderr")
    broker.stop()
    assert broker.output() == broker.log() + "\n" and "terminating" in broker.output()


def test_none(new_broker):
    broker = started(new_broker, "log_dest stderr", "log_dest none")
    broker.stop()
    assert broker.log() == broker.output() == ""


def test_quiet(new_broker, connect):
    """-q says nothing, even beside -v."""
    broker = started(new_broker, args=["-q", "-v"])
    connect(broker=broker).ping()
    broker.stop()
    assert broker.log() == broker.output() == ""


def test_topic(new_broker, connect):
    broker = new_broker("log_dest topic", "log_dest stderr", "log_type all")
    watch = connect("watch", broker=broker)
    watch.subscribe("$SYS/broker/log/#")
    seen = {}
    other = connect("other", broker=broker)
    other.subscribe("a")
    other.unsubscribe("a")
    while set(seen) < {"N", "M/subscribe", "M/unsubscribe"}:
        p = watch.expect_publish(retain=False)
        seen.setdefault(p.topic.removeprefix("$SYS/broker/log/"), []).append(p.payload.decode())
    assert set(seen) <= {"E", "W", "N", "I", "M/subscribe", "M/unsubscribe"}
    assert "other 0 a" in seen["M/subscribe"] and "other a" in seen["M/unsubscribe"]


@pytest.fixture
def dev_log():
    """A socket at /dev/log, where no syslog daemon has one."""
    if os.path.exists("/dev/log") or os.geteuid() != 0:
        pytest.skip("needs root and no syslog daemon")
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind("/dev/log")
    s.settimeout(5)
    yield s
    s.close()
    os.unlink("/dev/log")


@pytest.mark.xdist_group("dev_log")
def test_syslog(new_broker, dev_log, connect):
    """Priority, program and text; and a daemon that does not read holds up nobody."""
    broker = started(new_broker, "log_dest syslog", "log_facility 3", "log_type all")
    line = dev_log.recv(10000).decode()
    assert re.fullmatch(rf"<158>\w{{3}} [ \d]\d \d\d:\d\d:\d\d midge\[{broker.pid}\]: midge version \S+ starting", line)
    client = connect(broker=broker)
    for _ in range(500):
        client.publish("t", "x")
    client.ping()
    dev_log.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            dev_log.recv(10000)
    dev_log.settimeout(5)
    client.ping()
    lines = [dev_log.recv(10000).decode() for _ in range(2)]
    assert re.search(r"<156>.*Warning: \d+ log lines were lost here", lines[0])
    assert "PINGREQ" in lines[1]


# Files that cannot be written

def test_file_in_a_missing_folder(new_broker):
    """The folder is made."""
    broker = new_broker("log_dest file {dir}/new/log", "log_dest stderr")
    wait_text(broker, "new/log", "running")


@pytest.mark.parametrize("path", ["{dir}", "{dir}/fifo", "/proc/none/log", "{dir}/file/log"],
                         ids=["folder", "fifo", "proc", "below-a-file"])
def test_file_that_cannot_be_opened(new_broker, connect, path):
    """A line that names it and the reason, and the broker runs."""
    broker = new_broker("log_dest file " + path, start=False)
    os.mkfifo(broker.path("fifo"))
    open(broker.path("file"), "w").close()
    broker.start()
    line = broker.wait_log("Error: Unable to open log file").string
    assert path.format(dir=broker.dir) in line and "Logging to stderr instead" in line
    connect(broker=broker).ping()


def test_full_disk(new_broker, connect):
    """Told once on stderr; the broker goes on."""
    broker = started(new_broker, "log_dest file /dev/full", "log_type all")
    client = connect(broker=broker)
    for _ in range(100):
        client.ping()
    broker.stop()
    assert re.search("Unable to write to the log file /dev/full: No space left on device", broker.log())
    assert len(broker.log().splitlines()) == 1


# Size

def test_file_size(new_broker, connect):
    """At its size the file becomes FILE.1, and no line is lost at the turn."""
    broker = started(new_broker, "log_dest file {dir}/log", "log_file_size 20000", "log_type all")
    client = connect(broker=broker)
    for i in range(250):
        client.publish(f"topic/{i}", "x")
        client.ping()
    broker.stop()
    old, new = read(broker, "log.1"), read(broker, "log")
    assert 15000 < len(old) <= 20000 and len(new) <= 20000
    numbers = [int(n) for n in re.findall(r"'topic/(\d+)'", old + new)]
    assert numbers == list(range(numbers[0], 250)) and numbers[0] > 0
    assert sorted(f for f in os.listdir(broker.dir) if f.startswith("log")) == ["log", "log.1"]


def test_file_size_where_nothing_can_be_renamed(new_broker, connect):
    """The file is emptied then: it must not fill the card."""
    broker = new_broker("log_dest file {dir}/log", "log_file_size 20000", "log_type all", start=False)
    os.mkdir(broker.path("log.1"))
    broker.spawn()
    wait_text(broker, "log", "running")
    client = connect(broker=broker)
    for i in range(300):
        client.publish(f"topic/{i}", "x")
        client.ping()
    broker.stop()
    text = read(broker, "log")
    assert len(text) <= 20000 and "'topic/299'" in text and "'topic/0'" not in text


def test_file_size_0(new_broker, connect):
    broker = started(new_broker, "log_dest file {dir}/log", "log_file_size 0", "log_type all")
    client = connect(broker=broker)
    for _ in range(300):
        client.ping()
    broker.stop()
    assert read(broker, "log").count("PINGREQ") == 300


# Lines that come again and again

def test_repeated_lines(new_broker, dial):
    """Shown a few times, then counted; ports do not make them different."""
    broker = new_broker("max_connections 0")
    for _ in range(100):
        dial(broker).expect_closed()
    broker.stop()
    lines = [x for x in broker.log().splitlines() if "denied: max_connections" in x]
    assert len(lines) == 21
    assert re.search(r"from 127\.0\.0\.1:\* denied: max_connections exceeded\. \(repeated 80 times\)$", lines[-1])


def test_repeated_lines_are_counted_in_time(new_broker, dial):
    """The count comes without another line."""
    broker = new_broker("max_connections 0")
    for _ in range(30):
        dial(broker).expect_closed()
    broker.wait_log(r"\(repeated 10 times\)", timeout=20)


def test_packets_are_never_counted_away(new_broker, connect):
    broker = new_broker(args=["-v"])
    client = connect(broker=broker)
    for _ in range(60):
        client.publish("t", "x")
    client.ping()
    broker.stop()
    assert len(re.findall(r"Received PUBLISH from", broker.log())) == 60


# Nobody reads

def full_pipe():
    """A pipe that takes no more."""
    r, w = os.pipe()
    os.set_blocking(w, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(w, b"x" * 65536)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(w, b"x")
    os.set_blocking(w, True)
    return r, w


def full_terminal():
    """A terminal that shows no more."""
    try:
        master, slave = os.openpty()
    except OSError:
        pytest.skip("no terminals can be made here")
    os.set_blocking(slave, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(slave, b"x" * 4096)
    os.read(master, 3000)       # some room is worse than none: a large write would wait
    os.set_blocking(slave, True)
    return master, slave


@pytest.mark.parametrize("stuck", [full_pipe, full_terminal], ids=["pipe", "terminal"])
def test_stderr_that_nobody_reads(new_broker, connect, monkeypatch, stuck):
    """The broker goes on; what is lost is counted, where it was lost."""
    r, w = stuck()
    popen = subprocess.Popen
    monkeypatch.setattr("wire.subprocess.Popen",
                        lambda *a, **k: popen(*a, **{**k, "stderr": w, "stdout": subprocess.DEVNULL}))
    broker = new_broker("log_type all", start=False)
    # The harness reads pipes that are not there.
    monkeypatch.setattr(broker, "_read_log", lambda stream: None)
    monkeypatch.setattr(broker, "_read_output", lambda stream: None)
    broker.spawn()
    broker.process.stderr = broker.process.stdout = open(os.devnull)
    wait_for(lambda: listens(broker), "listener")
    client = connect(broker=broker)
    for _ in range(5000):
        client.publish("a/topic/with/some/length/to/fill/the/log", "x")
    client.ping()
    seen = bytearray()
    reader = threading.Thread(target=read_log, args=(r, seen), daemon=True)
    reader.start()
    wait_for(lambda: b"were lost here" in seen, "lines that were kept", timeout=10)
    client.ping()
    broker.stop()
    reader.join(10)
    os.close(r)
    os.close(w)
    text = seen.lstrip(b"x").decode()
    shown = text.count("Received PUBLISH")
    lost = sum(int(n) for n in re.findall(r"Warning: (\d+) log lines were lost here, as nobody took them\.", text))
    assert shown + lost >= 5000 > shown
    assert text.index("starting") < text.index("were lost here") < text.index("terminating")


def read_log(fd, into):
    while b"terminating" not in into[-2000:]:
        into += os.read(fd, 65536)


# Shapes

def test_shapes_of_a_session(new_broker, connect, dial):
    """The lines of Mosquitto, which people look for."""
    broker = new_broker("log_type all", args=["-v"])
    port = broker.port
    watch = connect("watch", broker=broker, version=V5)
    watch.subscribe("lab/#", "gone", qos=2)
    pub = connect("pub", broker=broker, username="admin")
    for qos in (0, 1, 2):
        pub.publish("lab/a", "hello", qos=qos)
        watch.expect_publish("lab/a", qos=qos)
    watch.unsubscribe("lab/#")
    lost = dial(broker, version=V31)
    lost.connect("lost", will=Will("gone", "bye", qos=1), keepalive=5)
    lost.close()
    watch.expect_publish("gone", "bye")
    connect("pub", broker=broker)
    watch.ping()
    watch.disconnect()
    broker.stop()
    log = broker.log()
    at = 0
    for line in (
            rf"New connection from 127\.0\.0\.1:\d+ on port {port}\.",
            r"New client connected from 127\.0\.0\.1:\d+ as watch \(p5, c1, k60\)\.",
            r"No will message specified\.",
            r"Sending CONNACK to watch \(0, 0\)",
            r"Received SUBSCRIBE from watch",
            r"\tlab/# \(QoS 2\)",
            r"watch 2 lab/#",
            r"Sending SUBACK to watch",
            r"New client connected from 127\.0\.0\.1:\d+ as pub \(p2, c1, k60, u'admin'\)\.",
            r"Received PUBLISH from pub \(d0, q0, r0, m0, 'lab/a', \.\.\. \(5 bytes\)\)",
            r"Sending PUBLISH to watch \(d0, q0, r0, m0, 'lab/a', \.\.\. \(5 bytes\)\)",
            r"Received PUBLISH from pub \(d0, q1, r0, m1, 'lab/a', \.\.\. \(5 bytes\)\)",
            r"Sending PUBLISH to watch \(d0, q1, r0, m1, 'lab/a', \.\.\. \(5 bytes\)\)",
            r"Sending PUBACK to pub \(m1, rc0\)",
            r"Received PUBACK from watch \(Mid: 1, RC:0\)",
            r"Received PUBLISH from pub \(d0, q2, r0, m2, 'lab/a', \.\.\. \(5 bytes\)\)",
            r"Sending PUBREC to pub \(m2, rc0\)",
            r"Received PUBREL from pub \(Mid: 2\)",
            r"Sending PUBCOMP to pub \(m2\)",
            r"Received PUBREC from watch \(Mid: 2\)",
            r"Sending PUBREL to watch \(m2\)",
            r"Received PUBCOMP from watch \(Mid: 2, RC:0\)",
            r"Received UNSUBSCRIBE from watch",
            r"\tlab/#",
            r"watch lab/#",
            r"Sending UNSUBACK to watch",
            r"New client connected from 127\.0\.0\.1:\d+ as lost \(p1, c1, k5\)\.",
            r"Will message specified \(3 bytes\) \(r0, q1\)\.",
            r"\tgone",
            r"Client lost \[127\.0\.0\.1:\d+\] disconnected: connection closed by client\.",
            r"Client pub already connected, closing old connection\.",
            r"Client pub \[127\.0\.0\.1:\d+\] disconnected: session taken over\.",
            r"Received PINGREQ from watch",
            r"Sending PINGRESP to watch",
            r"Received DISCONNECT from watch",
            r"Client watch \[127\.0\.0\.1:\d+\] disconnected\.",
            r"midge version \S+ terminating"):
        found = re.compile(r"^\d+: " + line + "$", re.M).search(log, at)
        assert found, f"no {line!r} behind\n" + log[max(0, at - 500):at] + "\n--- but\n" + log[at:at + 1500]
        at = found.end() if not line.startswith(("Sending PUB", "Received PUB")) else at


def test_timestamps(new_broker):
    broker = new_broker("log_timestamp_format %Y-%m-%dT%H:%M:%S")
    broker.wait_log(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d: midge version \S+ running$")
    broker = new_broker("log_timestamp false")
    broker.wait_log(r"^midge version \S+ running$")


def test_types(new_broker, connect):
    broker = new_broker("log_type information", "log_type subscribe")
    client = connect("anna", broker=broker)
    client.subscribe("t")
    client.disconnect()
    broker.stop()
    assert re.search(r"^\d+: anna 0 t$", broker.log(), re.M)
    assert "New client" not in broker.log() and "SUBSCRIBE" not in broker.log()


def test_connection_messages(new_broker, connect):
    broker = new_broker("connection_messages false")
    connect("anna", broker=broker).disconnect()
    broker.stop()
    assert "anna" not in broker.log() and "New connection" not in broker.log()
