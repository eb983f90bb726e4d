"""Real clients, as their users use them.

  mosquitto_pub, mosquitto_sub, mosquitto_rr   command lines as people type them
  paho                                         in this process, with its own network thread
  MQTT.js                                      the engine of MQTTX and MQTTBox, see client.js

The packages are mosquitto-clients, python3-paho-mqtt (1.6) and nodejs of Debian, and mqtt of npm
in build/node_modules. A client that is not there is a failure.
"""

import hashlib
import itertools
import json
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import threading
import time

import paho.mqtt.client as paho
import paho.mqtt.publish as paho_publish
import paho.mqtt.subscribe as paho_subscribe
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from wire import ROOT, has_ipv6, password_line, wait_for

WAIT_S = 20     # for anything that a client says or does

VERSIONS = {"mqttv31": 1, "mqttv311": 2, "mqttv5": 5}   # -V of mosquitto_sub: p in the log

each_version = pytest.mark.parametrize("version", VERSIONS)
each_qos = pytest.mark.parametrize("qos", [0, 1, 2])
each_end = pytest.mark.parametrize("end", ["kill", "stop"])     # of the broker: SIGKILL or SIGTERM

LARGE = hashlib.shake_128(b"large").digest(1 << 20)

numbers = itertools.count(1)


class Program:
    """A client in a process of its own: its output, line by line, and its end."""

    def __init__(self, words, piped=False):
        self.words = words
        self.output = b""       # all that it wrote, to stdout and stderr
        self.lines = []         # of these, the lines that nobody has taken yet
        self._news = threading.Condition()
        self._ended = False     # of the output
        self.process = subprocess.Popen(
            words, env={**os.environ, "XDG_CONFIG_HOME": os.devnull},   # no options of this user
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._news:
                self.output += line
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def take(self, regex, timeout=WAIT_S):
        """Takes the first line that the regex finds, waiting for it; returns the match."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                for i, line in enumerate(self.lines):
                    found = re.search(regex, line)
                    if found:
                        del self.lines[i]
                        return found
                left = deadline - time.monotonic()
                assert left > 0 and not self._ended, f"no line /{regex}/ from {self}"
                self._news.wait(left)

    def write(self, text):
        """Writes to stdin, from here on and without waiting."""
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def finish(self, code=0, timeout=WAIT_S):
        """Waits for the end, which must have this code; returns the lines of output not taken."""
        try:
            ended = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end of {self}") from None
        self._reader.join(timeout)
        assert ended == code, f"exit code {ended} of {self}"
        return self.lines

    def kill(self):
        self.process.kill()

    def interrupt(self):
        """Ctrl-C, once the program waits for something: mosquitto_sub may hang if hit elsewhere."""
        def waits():
            with open(f"/proc/{self.process.pid}/stat") as f:
                return f.read().rpartition(")")[2].split()[0] == "S"
        wait_for(waits, "rest", WAIT_S)
        self.process.send_signal(signal.SIGINT)

    def cleanup(self):
        if self.process.poll() is None:
            self.kill()
        self.process.wait()
        if self.process.stdin:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass    # the rest of its input
        self._reader.join(WAIT_S)
        self.process.stdout.close()

    def __str__(self):
        return shlex.join(self.words) + ", which wrote\n" + self.output[-2000:].decode(errors="replace")


@pytest.fixture
def start():
    """start(words, piped=): a Program, ended with the test if it still runs."""
    programs = []

    def create(words, **options):
        programs.append(Program(words, **options))
        return programs[-1]

    yield create
    for program in programs:
        program.cleanup()


# mosquitto_pub, mosquitto_sub, mosquitto_rr

@pytest.fixture
def mosquitto(start, request):
    """mosquitto(line, broker=): a Program, "sub -t x" for mosquitto_sub -t x; the address of the
    broker (without one, the shared broker) is added unless the line names one."""
    def create(line, broker=None, piped=False):
        words = shlex.split("mosquitto_" + line)
        if not {"--unix", "-L"} & set(words):
            broker = broker or request.getfixturevalue("broker")
            words += ["-p", str(broker.port)] + ([] if "-h" in words else ["-h", "127.0.0.1"])
        return start(words, piped=piped)
    return create


@pytest.fixture
def pub(mosquitto):
    """pub(line, input=, code=): mosquitto_pub from its start to its end."""
    def run(line, broker=None, input=None, code=0):
        program = mosquitto("pub " + line, broker, piped=input is not None)
        if input is not None:
            program.write(input)
            program.process.stdin.close()
        return program.finish(code)
    return run


@pytest.fixture
def sub(mosquitto, request):
    """sub(line): mosquitto_sub, a Program that has subscribed. It has an id, unless the line gives one."""
    def run(line, broker=None):
        if " -i " not in line:
            line += f" -i sub{next(numbers)}"
        broker = broker or request.getfixturevalue("broker")
        before = broker.mark()
        program = mosquitto("sub " + line, broker)
        program.id = re.search(" -i ([^ ]+)", line).group(1)
        broker.wait_log(f"Sending SUBACK to {program.id}$", after=before, timeout=WAIT_S)
        return program
    return run


@each_qos
@each_version
def test_mosquitto(broker, pub, sub, topic, version, qos):
    reader = sub(f"-V {version} -t {topic} -q {qos} -F '%t %q %r %p' -C 1")
    assert pub(f"-V {version} -t {topic} -q {qos} -m 'hello world'") == []
    assert reader.finish() == [f"{topic} {qos} 0 hello world"]
    broker.wait_log(rf"connected from \S+ as {reader.id} \(p{VERSIONS[version]}, c1, k60\)\.$")


@each_version
def test_mosquitto_lower_qos(pub, sub, topic, version):
    readers = [sub(f"-V {version} -t {topic} -q {qos} -F %q -C 3") for qos in range(3)]
    for qos in range(3):
        pub(f"-V {version} -t {topic} -q {qos} -m x")
    assert [r.finish() for r in readers] == [["0", "0", "0"], ["0", "1", "1"], ["0", "1", "2"]]


@each_version
def test_mosquitto_retained(pub, sub, topic, version):
    pub(f"-V {version} -t {topic}/a -r -q 1 -m kept")
    pub(f"-V {version} -t {topic}/b -r -q 1 -m old")
    pub(f"-V {version} -t {topic}/b -r -q 1 -m new")
    pub(f"-V {version} -t {topic}/c -r -q 1 -m gone")
    pub(f"-V {version} -t {topic}/c -r -q 1 -n")
    reader = sub(f"-V {version} -t {topic}/+ -F '%t %r %p' -C 3")
    pub(f"-V {version} -t {topic}/d -m live")
    assert sorted(reader.finish()) == [f"{topic}/a 1 kept", f"{topic}/b 1 new", f"{topic}/d 0 live"]
    # to a subscriber that is there already it is a message like any other
    reader = sub(f"-V {version} -t {topic}/+ -F '%t %r %p' -R -C 1")
    pub(f"-V {version} -t {topic}/e -r -m fresh")
    assert reader.finish() == [f"{topic}/e 0 fresh"]


def test_mosquitto_remove_retained(broker, pub, sub, topic):
    for name in "abc":
        pub(f"-t {topic}/{name} -r -m {name}")
    cleaner = sub(f"-t {topic}/# --remove-retained")
    for name in "abc":
        cleaner.take(f"^{name}$")
        broker.wait_log(rf"Received PUBLISH from {cleaner.id} \(d0, q\d, r1, m\d+, '{topic}/{name}', ... \(0 bytes\)\)")
    reader = sub(f"-t {topic}/# -v -C 1")
    pub(f"-t {topic}/end -m x")
    assert reader.finish() == [f"{topic}/end x"]


@each_version
def test_mosquitto_will(sub, topic, version):
    watcher = sub(f"-V {version} -t {topic} -q 2 -F '%q %r %p' -C 1")
    victim = sub(f"-V {version} -t {topic}/x --will-topic {topic} --will-payload 'power cut' --will-qos 1 "
                 "--will-retain")
    victim.kill()
    assert watcher.finish() == ["1 0 power cut"]
    assert sub(f"-V {version} -t {topic} -q 2 -F '%q %r %p' -C 1").finish() == ["1 1 power cut"]


@each_version
def test_mosquitto_will_and_ctrl_c(pub, sub, topic, version):
    """mosquitto_sub takes its leave in version 5 with the request to send the will."""
    watcher = sub(f"-V {version} -t {topic} -C 1")
    victim = sub(f"-V {version} -t {topic}/x --will-topic {topic} --will-payload will")
    pub(f"-t {topic}/x -m hello")
    victim.take("hello")
    victim.interrupt()
    victim.finish()
    pub(f"-V {version} -t {topic} -m 'no will'")
    assert watcher.finish() == ["will" if version == "mqttv5" else "no will"]


@pytest.mark.parametrize("qos", [1, 2])
@each_version
def test_mosquitto_persistent_session(broker, pub, sub, topic, cid, version, qos):
    line = f"-V {version} -c -i {cid} -t {topic} -q {qos}"
    sub(line + " -E").finish()
    for i in range(3):
        pub(f"-V {version} -t {topic} -q {qos} -m {i}")
    before = broker.mark()
    assert sub(line + " -F '%q %p' -C 3").finish() == [f"{qos} {i}" for i in range(3)]
    if version != "mqttv31":    # 3.1 has no such flag
        broker.wait_log(rf"Sending CONNACK to {cid} \(1, 0\)", after=before)
    # without -c it ends, for good
    sub(f"-V {version} -i {cid} -t {topic}/x -E").finish()
    pub(f"-V {version} -t {topic} -q {qos} -m lost")
    before = broker.mark()
    reader = sub(line + " -C 1")
    broker.wait_log(rf"Sending CONNACK to {cid} \(0, 0\)", after=before)
    pub(f"-V {version} -t {topic} -q {qos} -m new")
    assert reader.finish() == ["new"]


def test_mosquitto_session_expiry(broker, pub, sub, topic, cid):
    short = f"-V mqttv5 -c -x 1 -i {cid}s -t {topic} -q 1"
    long = f"-V mqttv5 -c -x 100 -i {cid}l -t {topic} -q 1"
    for line in (short, long):
        sub(line + " -E").finish()
    pub(f"-V mqttv5 -t {topic} -q 1 -m first")
    broker.wait_log(f"Expiring client {cid}s due to timeout", timeout=WAIT_S)
    readers = sub(short + " -C 1"), sub(long + " -C 2")
    pub(f"-V mqttv5 -t {topic} -q 1 -m second")
    assert [r.finish() for r in readers] == [["second"], ["first", "second"]]


@each_version
def test_mosquitto_unsubscribe(broker, pub, sub, topic, cid, version):
    line = f"-V {version} -c -i {cid} -q 1"
    sub(f"{line} -t {topic}/a -t {topic}/b -E").finish()
    reader = sub(f"{line} -U {topic}/a -t {topic}/b -C 1")
    broker.wait_log(f"Sending UNSUBACK to {cid}$")
    for name in "ab":
        pub(f"-V {version} -t {topic}/{name} -q 1 -m {name}")
    assert reader.finish() == ["b"]


def test_mosquitto_unix_socket(new_broker, pub, sub):
    own = new_broker(config="listener 0 {dir}/sock\nallow_anonymous true\n", args=["-v"])
    reader = sub(f"--unix {own.path('sock')} -t x -q 2 -C 1", own)
    pub(f"--unix {own.path('sock')} -t x -q 2 -m hello", own)
    assert reader.finish() == ["hello"]


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_mosquitto_ipv6(new_broker, pub, sub):
    own = new_broker(config="listener {port}\nallow_anonymous true\n", args=["-v"])
    hosts = ["::1", "127.0.0.1", "localhost"]
    readers = [sub(f"-h {host} -t x -C 3", own) for host in hosts]
    for host in hosts:
        pub(f"-h {host} -t x -q 1 -m {host}", own)
    assert [r.finish() for r in readers] == [hosts] * 3
    own.wait_log(r"New client connected from (\[::1\]|::1):\d+ as " + readers[0].id)


@each_version
def test_mosquitto_url(broker, mosquitto, pub, topic, version):
    pub(f"-V {version} -t {topic} -r -q 1 -m hello")
    url = f"mqtt://pupil:secret@127.0.0.1:{broker.port}/{topic}"
    assert mosquitto(f"sub -V {version} -L {url} -C 1").finish() == ["hello"]
    broker.wait_log(r"\(p%d, c1, k60, u'pupil'\)\.$" % VERSIONS[version])


@each_qos
def test_mosquitto_lines(new_broker, pub, sub, qos):
    """Sensor data from a pipe. The queue has room for all, however slow the reader is."""
    own = new_broker("max_queued_messages 0", args=["-v"])
    lines = [f"{i} {'x' * (i % 200)}" for i in range(4000)]
    reader = sub(f"-t x -q {qos} -C {len(lines)}", own)
    pub(f"-t x -q {qos} -l", own, input="\n".join(lines) + "\n")
    assert reader.finish() == lines


def test_mosquitto_repeat_and_stdin(pub, sub, topic):
    reader = sub(f"-t {topic} -q 1 -C 4")
    pub(f"-t {topic} -q 1 -m again --repeat 3")
    pub(f"-t {topic} -q 1 -s", input="all of it")
    assert reader.finish() == ["again"] * 3 + ["all of it"]


@each_version
def test_mosquitto_large_payload(pub, sub, topic, tmp_path, version):
    (tmp_path / "large").write_bytes(LARGE)
    reader = sub(f"-V {version} -t {topic} -q 1 -N -C 1")
    pub(f"-V {version} -t {topic} -q 2 -r -f {tmp_path / 'large'}")
    reader.finish()
    assert reader.output == LARGE
    late = sub(f"-V {version} -t {topic} -q 2 -N -C 1")
    late.finish()
    assert late.output == LARGE


def test_mosquitto_payload_over_the_limit(new_broker, pub, tmp_path):
    own = new_broker("max_packet_size 1000", args=["-v"])
    (tmp_path / "large").write_bytes(LARGE)
    output = pub(f"-t x -q 1 -f {tmp_path / 'large'}", own, code=7)
    assert output == ["Error: The connection was lost."]
    own.wait_log("disconnected: oversize packet")


@each_version
def test_mosquitto_wildcards(pub, sub, topic, version):
    readers = [sub(f"-V {version} -v -C {n} {filters}") for n, filters in (
        (2, f"-t {topic}/+/light"),
        (4, f"-t {topic}/#"),
        (2, f"-t {topic}/kitchen/+ -T {topic}/kitchen/noise"),
        (2, f"-t +/+/light -t {topic}/kitchen"))]
    for name in ("kitchen/light", "kitchen/noise", "hall/light", "kitchen"):
        pub(f"-V {version} -t {topic}/{name} -q 1 -m x")
    pub(f"-V {version} -t {topic}/kitchen/end -q 1 -m x")
    assert [[line.split()[0][len(topic) + 1:] for line in r.finish()] for r in readers] == [
        ["kitchen/light", "hall/light"],
        ["kitchen/light", "kitchen/noise", "hall/light", "kitchen"],
        ["kitchen/light", "kitchen/end"],
        ["kitchen/light", "hall/light"]]


def test_mosquitto_sys(new_broker, pub, sub):
    own = new_broker("sys_interval 1", args=["-v"])
    assert re.match(r"(midge|mosquitto) version \d", sub("-t $SYS/broker/version -C 1", own).finish()[0])
    sub("-t '$SYS/#' -v", own).take(r"^\$SYS/broker/uptime \d+ seconds$")
    everything = sub("-t '#' -v -C 1", own)
    pub("-t x -q 1 -m hello", own)
    assert everything.finish() == ["x hello"]


PROPERTIES = ("-D publish user-property unit C -D publish user-property room 12 -D publish user-property unit C "
              "-D publish user-property unit K -D publish content-type text/plain -D publish response-topic to/me "
              "-D publish correlation-data 0123 -D publish payload-format-indicator 1 "
              "-D publish message-expiry-interval 100")


def test_mosquitto_properties(pub, sub, topic):
    reader = sub(f"-V mqttv5 -t {topic} -q 1 -F '%P|%C|%R|%D|%F|%E|%S|%p' -C 1 -D subscribe subscription-identifier 7 "
                 "-D connect user-property who me -D connect receive-maximum 3 -D disconnect user-property a b")
    pub(f"-V mqttv5 -t {topic} -q 1 -m hello {PROPERTIES}")
    assert reader.finish() == ["unit:C room:12 unit:C unit:K|text/plain|to/me|0123|1|100|7|hello"]


def test_mosquitto_properties_of_kept_messages(pub, sub, topic, cid):
    """The time that a message has waited is taken off its expiry."""
    shape = "-q 1 -F '%P|%C|%R|%D|%F|%E|%p'"
    queued = f"-V mqttv5 -c -i {cid} -t {topic}/queued {shape}"
    sub(queued + " -E").finish()
    pub(f"-V mqttv5 -t {topic}/queued -q 1 -m hello {PROPERTIES}")
    pub(f"-V mqttv5 -t {topic}/retained -q 1 -r -m hello {PROPERTIES}")
    for reader in (sub(queued + " -C 1"), sub(f"-V mqttv5 -t {topic}/retained {shape} -C 1")):
        found = re.fullmatch(r"unit:C room:12 unit:C unit:K\|text/plain\|to/me\|0123\|1\|(\d+)\|hello",
                             reader.finish()[0])
        assert found and 100 - WAIT_S <= int(found.group(1)) <= 100, reader


def test_mosquitto_message_expiry(pub, sub, topic):
    """A retained message is gone after its second; on one topic it would be the first to come."""
    pub(f"-V mqttv5 -t {topic} -q 1 -r -m mortal -D publish message-expiry-interval 1")

    def gone():
        reader = sub(f"-V mqttv5 -t {topic} -C 1")
        pub(f"-V mqttv5 -t {topic} -q 1 -m live")
        return reader.finish() == ["live"]

    wait_for(gone, "expiry", WAIT_S)


def test_mosquitto_topic_alias_from_the_client(broker, pub, sub, topic):
    """After the first line mosquitto_pub sends the alias alone."""
    reader = sub(f"-V mqttv5 -t {topic} -q 1 -F '%t %p' -C 5")
    pub(f"-V mqttv5 -i {topic}pub -t {topic} -q 1 -l -D publish topic-alias 5", input="1\n2\n3\n4\n5\n")
    assert reader.finish() == [f"{topic} {i}" for i in range(1, 6)]
    broker.wait_log(rf"Received PUBLISH from {topic}pub \(d0, q1, r0, m5, '', ...")


def test_mosquitto_topic_alias_to_the_client(new_broker, pub, sub):
    """mosquitto_sub 2.0 can ask for aliases but loses the messages that have one."""
    own = new_broker("max_topic_alias_broker 0", args=["-v"])
    reader = sub("-V mqttv5 -t x -F '%t %p' -C 3 -D connect topic-alias-maximum 10", own)
    pub("-V mqttv5 -t x -q 1 --repeat 3 -m hello", own)
    assert reader.finish() == ["x hello"] * 3


def test_mosquitto_will_properties(sub, topic):
    watcher = sub(f"-V mqttv5 -t {topic} -F '%P|%C|%R|%D|%p' -C 1")
    victim = sub(f"-V mqttv5 -t {topic}/x --will-topic {topic} --will-payload bye -D will user-property b 1 "
                 "-D will user-property a 2 -D will content-type text/plain -D will response-topic re "
                 "-D will correlation-data 42")
    victim.kill()
    assert watcher.finish() == ["b:1 a:2|text/plain|re|42|bye"]


def test_mosquitto_will_delay(broker, pub, sub, topic, cid):
    """The will of a session that is back in time is not sent; that of one that stays away is."""
    watcher = sub(f"-V mqttv5 -t {topic} -C 2")
    line = f"-V mqttv5 -c -x 100 -t {topic}/x --will-topic {topic} -D will will-delay-interval 2"
    for who in ("back", "away"):
        victim = sub(f"{line} -i {cid}{who} --will-payload {who}")
        victim.kill()
        broker.wait_log(rf"Client {cid}{who} \S+ (disconnected|closed)", timeout=WAIT_S)
        if who == "back":
            sub(f"{line} -i {cid}{who}")
    watcher.take("away")
    pub(f"-t {topic} -q 1 -m end")
    assert watcher.finish() == ["end"]


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_mosquitto_shared_subscription(pub, sub, topic, version):
    """Every line goes to one member of the group, and the work is shared."""
    members = [sub(f"-V {version} -t $share/group/{topic}/work -t {topic}/end -q 1 -C 1000") for _ in range(3)]
    alone = sub(f"-V {version} -t {topic}/work -q 1 -C 30")
    lines = [f"job {i}" for i in range(30)]
    pub(f"-V {version} -t {topic}/work -q 1 -l", input="\n".join(lines) + "\n")
    pub(f"-V {version} -t {topic}/end -q 1 -m end")
    for member in members:
        member.take("^end$")
    assert sorted(sum((m.lines for m in members), [])) == sorted(lines)
    assert all(len(m.lines) >= 5 for m in members)
    assert alone.finish() == lines


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_mosquitto_request_response(mosquitto, pub, sub, topic, version):
    responder = sub(f"-V {version} -t {topic}/ask -q 1 -C 1 -F '%R|%D|%p'")
    data = "-D publish correlation-data 42" if version == "mqttv5" else ""
    asker = mosquitto(f"rr -V {version} -t {topic}/ask -e {topic}/answer -q 1 -m question {data}")
    response_topic, correlation, question = responder.finish()[0].split("|")
    assert question == "question"
    if version == "mqttv5":
        assert (response_topic, correlation) == (f"{topic}/answer", "42")
    pub(f"-V {version} -t {topic}/answer -q 1 -m answer {data}")
    assert asker.finish() == ["answer"]


def test_mosquitto_request_without_response(mosquitto, topic):
    assert mosquitto(f"rr -t {topic}/ask -e {topic}/answer -m x -W 1").finish(27) == ["Timed out"]


@each_version
def test_mosquitto_refused(new_broker, mosquitto, version):
    """They say why and end, at once: with 5, or the reason of version 5."""
    own = new_broker(config="listener {port} 127.0.0.1\nallow_anonymous false\n", args=["-v"])
    code, text = (135, "Not authorized") if version == "mqttv5" else (5, "Connection Refused: not authorised.")
    for line in ("pub -t x -m hello", "sub -t x", "sub -t x -u pupil -P secret"):
        before = own.mark()
        assert f"Connection error: {text}" in mosquitto(f"{line} -V {version}", own).finish(code)
        own.wait_log("Client <unknown> .*disconnected.*not authorised", after=before)
    mosquitto(f"rr -V {version} -t x -e y -m hello", own).finish(code)


@each_version
def test_mosquitto_password(new_broker, mosquitto, version):
    own = new_broker("password_file {dir}/passwd", config="listener {port} 127.0.0.1\nallow_anonymous false\n",
                     args=["-v"], start=False)
    with open(own.path("passwd"), "w") as f:
        f.write(password_line("pupil", "secret"))
    own.start()
    refused = 135 if version == "mqttv5" else 5
    for login, code in (("-u pupil -P secret", 0), ("-u pupil -P wrong", refused), ("-u other -P secret", refused),
                        ("-u pupil", refused), ("", refused)):
        mosquitto(f"pub -V {version} -t x -m hello {login}", own).finish(code)


@pytest.mark.parametrize("version, end", [
    ("mqttv31", "kill"), ("mqttv311", "kill"), ("mqttv5", "kill"), ("mqttv311", "stop"), ("mqttv5", "stop")])
def test_mosquitto_sub_reconnects(new_broker, pub, sub, version, end):
    """The broker is started anew; mosquitto_sub finds it again and subscribes again."""
    own = new_broker(args=["-v"])
    reader = sub(f"-V {version} -t x -q 1 -C 2", own)
    pub("-t x -q 1 -m before", own)
    reader.take("before")
    getattr(own, end)()
    own.start()

    def subscribed():
        assert reader.process.poll() is None, f"unexpected end of {reader}"
        return re.search(f"Sending SUBACK to {reader.id}$", own.log(), re.MULTILINE)

    wait_for(subscribed, "subscription", WAIT_S)
    pub("-t x -q 1 -m after", own)
    assert reader.finish() == ["after"]


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_mosquitto_two_with_one_id(broker, sub, cid, topic, version):
    first = sub(f"-V {version} -i {cid} -t {topic} -d")
    sub(f"-V {version} -i {cid} -t {topic}")
    broker.wait_log(f"Client {cid} already connected, closing old connection")
    if version == "mqttv5":
        assert "Received DISCONNECT (142)" in first.finish()
    else:   # nobody tells it why; it comes back
        broker.wait_log(f"New client connected from .* as {cid} ", after=broker.mark(), timeout=WAIT_S)


@each_version
def test_mosquitto_debug_output(mosquitto, pub, topic, version):
    """What sub -d and pub -d print, that is, all packets and the ids in them."""
    def said(words):
        return [line.replace("Client who ", "") for line in words]

    assert said(pub(f"-V {version} -d -i who -t {topic} -q 2 -r -m hello")) == [
        "sending CONNECT",
        "received CONNACK (0)",
        f"sending PUBLISH (d0, q2, r1, m1, '{topic}', ... (5 bytes))",
        "received PUBREC (Mid: 1)",
        "sending PUBREL (m1)",
        "received PUBCOMP (Mid: 1, RC:0)",
        "sending DISCONNECT"]
    assert said(mosquitto(f"sub -V {version} -d -i who -t {topic} -q 2 -C 1").finish()) == [
        "sending CONNECT",
        "received CONNACK (0)",
        f"sending SUBSCRIBE (Mid: 1, Topic: {topic}, QoS: 2, Options: 0x00)",
        "received SUBACK",
        "Subscribed (mid: 1): 2",
        f"received PUBLISH (d0, q2, r1, m1, '{topic}', ... (5 bytes))",
        "sending PUBREC (m1, rc0)",
        "received PUBREL (Mid: 1)",
        "sending PUBCOMP (m1)",
        "hello",
        "sending DISCONNECT"]


def test_mosquitto_without_an_id(broker, mosquitto, pub, topic):
    """Only version 5 tells the client its id."""
    pub(f"-t {topic} -r -q 1 -m hello")
    assert "Client (null) received CONNACK (0)" in mosquitto(f"sub -t {topic} -d -C 1").finish()
    output = mosquitto(f"sub -V mqttv5 -t {topic} -d -C 1").finish()
    given = re.search(r"Client (auto-\S+) received CONNACK \(0\)", "\n".join(output)).group(1)
    broker.wait_log(rf"as {given} \(p5, c1, k60\)")


# paho

class Paho:
    """A paho client with its network thread; what it hears waits in queues."""

    def __init__(self, version, client_id, clean=True):
        self.version = version
        self.clean = clean
        self.connacks, self.subacks, self.unsubacks, self.messages, self.ends = (queue.Queue() for _ in range(5))
        self.client = paho.Client(client_id, protocol=version, clean_session=None if version == paho.MQTTv5 else clean)
        self.client.reconnect_delay_set(0.1, 1)
        # paho gives version 5 one argument more, the properties
        self.client.on_connect = lambda c, u, flags, code, *_: self.connacks.put((flags["session present"], code))
        self.client.on_subscribe = lambda c, u, mid, granted, *_: self.subacks.put([int(str(g)[-1]) for g in granted])
        self.client.on_unsubscribe = lambda *_: self.unsubacks.put(True)
        self.client.on_message = lambda c, u, message: self.messages.put(message)
        self.client.on_disconnect = lambda c, u, code, *_: self.ends.put(code)

    def connect(self, broker, expiry=None):
        """Connects and returns whether the session was there."""
        options = {}
        if self.version == paho.MQTTv5:
            options = dict(clean_start=self.clean, properties=Properties(PacketTypes.CONNECT))
            if expiry is not None:
                options["properties"].SessionExpiryInterval = expiry
        self.client.connect(*broker.address, **options)
        self.client.loop_start()
        return self.connected()

    def connected(self):
        present, code = self.connacks.get(timeout=WAIT_S)
        assert code == 0
        return bool(present)

    def subscribe(self, *args, **options):
        assert self.client.subscribe(*args, **options)[0] == 0
        return self.subacks.get(timeout=WAIT_S)

    def unsubscribe(self, *args):
        assert self.client.unsubscribe(*args)[0] == 0
        self.unsubacks.get(timeout=WAIT_S)

    def publish(self, *args, **options):
        """Publishes and waits for the acknowledgement."""
        info = self.client.publish(*args, **options)
        info.wait_for_publish(WAIT_S)
        assert info.is_published()

    def message(self):
        return self.messages.get(timeout=WAIT_S)

    def texts(self, n):
        """The payloads of the next n messages."""
        return [self.message().payload.decode() for _ in range(n)]

    def cut(self):
        """The connection is gone, without DISCONNECT; paho connects again by itself. It may be at
        that already: a broker that keeps to its Receive Maximum refuses a client that does not."""
        sock = self.client.socket()
        if sock:
            sock.shutdown(socket.SHUT_RDWR)

    def disconnect(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def make_paho(cid):
    """make_paho(version, client_id=, clean=): a Paho, not connected yet."""
    clients = []

    def create(version, client_id=None, clean=True):
        clients.append(Paho(version, client_id or f"{cid}-{len(clients)}", clean))
        return clients[-1]

    yield create
    for client in clients:
        client.disconnect()


@pytest.fixture
def connect_paho(make_paho, broker):
    """connect_paho(version, ...): a Paho that is connected to the shared broker."""
    def create(version, *args, expiry=None, **options):
        client = make_paho(version, *args, **options)
        client.connect(broker, expiry)
        return client
    return create


each_paho = pytest.mark.parametrize("version", [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5], ids=["3.1", "3.1.1", "5"])


@each_qos
@each_paho
def test_paho(connect_paho, topic, version, qos):
    one, two = connect_paho(version), connect_paho(version)
    for reader, writer in ((one, two), (two, one), (one, one)):
        assert reader.subscribe(topic, qos) == [qos]
        writer.publish(topic, "température", qos)
        message = reader.message()
        assert (message.topic, message.payload.decode(), message.qos, message.retain) == (topic, "température", qos, 0)
        reader.unsubscribe(topic)
    assert one.messages.empty() and two.messages.empty()


@each_paho
def test_paho_many_filters(connect_paho, topic, version):
    client = connect_paho(version)
    assert client.subscribe([(f"{topic}/{i}", i % 3) for i in range(12)]) == [i % 3 for i in range(12)]
    for i in range(12):
        client.publish(f"{topic}/{i}", str(i), 2)
    messages = [client.message() for _ in range(12)]
    assert sorted((int(m.payload), m.qos) for m in messages) == [(i, i % 3) for i in range(12)]
    client.unsubscribe([f"{topic}/{i}" for i in range(11)])
    client.publish(f"{topic}/0", "none", 1)
    client.publish(f"{topic}/11", "last", 1)
    assert client.texts(1) == ["last"]


@each_paho
def test_paho_large_payload(connect_paho, topic, version):
    client = connect_paho(version)
    client.subscribe(topic, 2)
    for qos in range(3):
        client.publish(topic, LARGE, qos)
        message = client.message()
        assert (message.payload == LARGE, message.qos) == (True, qos)


@each_paho
def test_paho_retained(connect_paho, topic, version):
    client = connect_paho(version)
    client.publish(topic, "kept", 1, retain=True)
    client.subscribe(topic, 1)
    message = client.message()
    assert (message.payload, message.qos, message.retain) == (b"kept", 1, 1)
    client.publish(topic, None, 1, retain=True)     # to this client a message, which removes
    assert (client.message().payload, client.messages.empty()) == (b"", True)
    late = connect_paho(version)
    late.subscribe(topic, 1)
    client.publish(topic, "live", 1)
    assert (late.texts(1), client.texts(1)) == (["live"], ["live"])


@each_paho
def test_paho_will(make_paho, connect_paho, broker, topic, version):
    watcher = connect_paho(version)
    watcher.subscribe(topic, 2)
    victim = make_paho(version)
    properties = None
    if version == paho.MQTTv5:
        properties = Properties(PacketTypes.WILLMESSAGE)
        properties.ContentType = "text/plain"
        properties.UserProperty = [("b", "1"), ("a", "2"), ("b", "1")]
    victim.client.will_set(topic, "gone", 2, retain=True, properties=properties)
    victim.connect(broker)
    victim.cut()
    message = watcher.message()
    assert (message.payload, message.qos, message.retain) == (b"gone", 2, 0)
    if properties:
        assert message.properties.ContentType == "text/plain"
        assert message.properties.UserProperty == [("b", "1"), ("a", "2"), ("b", "1")]
    victim.connected()      # by itself; with a good-bye there is no will
    victim.disconnect()
    watcher.publish(topic, "end", 2)
    assert watcher.texts(1) == ["end"]


@each_paho
def test_paho_persistent_session(connect_paho, make_paho, broker, topic, cid, version):
    first = connect_paho(version, cid, clean=False, expiry=100)
    first.subscribe([(topic + "/1", 1), (topic + "/2", 2)])
    first.disconnect()
    writer = connect_paho(version)
    for i in range(100):
        writer.publish(f"{topic}/{i % 2 + 1}", str(i), 2)
    second = make_paho(version, cid, clean=False)
    present = second.connect(broker, expiry=100)
    assert present == (version != paho.MQTTv31)     # 3.1 has no such flag
    messages = [second.message() for _ in range(100)]
    for qos in (1, 2):
        assert [int(m.payload) for m in messages if m.qos == qos] == list(range(qos - 1, 100, 2))
    second.disconnect()
    third = make_paho(version, cid)     # a clean one removes it
    third.connect(broker)
    third.disconnect()
    fourth = make_paho(version, cid, clean=False)
    assert not fourth.connect(broker)


@pytest.mark.parametrize("version, qos, n", [
    (paho.MQTTv311, 1, 10000), (paho.MQTTv5, 1, 10000), (paho.MQTTv311, 2, 2000), (paho.MQTTv5, 2, 2000),
    (paho.MQTTv5, 0, 10000)])
def test_paho_many_messages(new_broker, make_paho, version, qos, n):
    """All arrive, in order. The queue has room for all, however slow the reader is."""
    own = new_broker("max_queued_messages 0")
    reader, writer = make_paho(version), make_paho(version)
    reader.connect(own)
    writer.connect(own)
    reader.subscribe("x", qos)
    for i in range(n):
        last = writer.client.publish("x", str(i), qos)
    last.wait_for_publish(WAIT_S)
    assert reader.texts(n) == [str(i) for i in range(n)]


@pytest.mark.parametrize("version", [paho.MQTTv311, paho.MQTTv5], ids=["3.1.1", "5"])
def test_paho_broken_connections(new_broker, make_paho, version):
    """QoS 2 over connections that break in the middle, on both sides: each message comes once."""
    own = new_broker("max_queued_messages 0")
    reader, writer = make_paho(version, clean=False), make_paho(version, clean=False)
    for client in (reader, writer):
        client.connect(own, expiry=100)
    reader.subscribe("x", 2)
    infos = [writer.client.publish("x", str(i), 2) for i in range(1000)]
    got = []
    for client in (reader, writer, reader, writer):
        got += reader.texts(50)
        client.cut()
        assert client.connected(), "the session is not there"
    got += reader.texts(1000 - len(got))
    for info in infos:
        info.wait_for_publish(WAIT_S)
    assert got == [str(i) for i in range(1000)]
    writer.publish("x", "end", 2)
    assert reader.texts(1) == ["end"]


def test_paho_properties(connect_paho, topic):
    client = connect_paho(paho.MQTTv5)
    subscription = Properties(PacketTypes.SUBSCRIBE)
    subscription.SubscriptionIdentifier = 268435455
    client.subscribe(topic, options=SubscribeOptions(qos=2), properties=subscription)
    properties = Properties(PacketTypes.PUBLISH)
    properties.PayloadFormatIndicator = 1
    properties.MessageExpiryInterval = 100
    properties.ContentType = "text/plain"
    properties.ResponseTopic = "to/me"
    properties.CorrelationData = bytes(range(256))
    properties.UserProperty = [("b", "1"), ("a", "é"), ("b", "1"), ("", "")]
    client.publish(topic, "hello", 2, properties=properties)
    got = client.message().properties.json()
    assert got.pop("SubscriptionIdentifier") == [268435455]
    assert got == properties.json()


def test_paho_subscribe_options(connect_paho, topic):
    one, two = connect_paho(paho.MQTTv5), connect_paho(paho.MQTTv5)
    one.publish(topic, "retained", 1, retain=True)
    one.subscribe(topic, options=SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True, retainHandling=2))
    two.subscribe(topic, options=SubscribeOptions(qos=1, retainHandling=1))
    assert two.texts(1) == ["retained"]
    two.subscribe(topic, options=SubscribeOptions(qos=1, retainHandling=1))
    one.publish(topic, "from one", 1)
    two.publish(topic, "from two", 1, retain=True)
    assert two.texts(2) == ["from one", "from two"]
    message = one.message()
    assert (message.payload, message.retain) == (b"from two", 1)
    assert one.messages.empty() and two.messages.empty()


@each_paho
def test_paho_refused(new_broker, make_paho, version):
    own = new_broker(config="listener {port} 127.0.0.1\nallow_anonymous false\n")
    client = make_paho(version)
    client.client.username_pw_set("pupil", "secret")
    client.client.connect(*own.address)
    client.client.loop_start()
    present, code = client.connacks.get(timeout=WAIT_S)
    assert str(code) == ("Not authorized" if version == paho.MQTTv5 else "5")
    client.ends.get(timeout=WAIT_S)


@each_end
@each_paho
def test_paho_reconnects(new_broker, make_paho, version, end):
    """After a restart; a message published in between is sent then."""
    own = new_broker()
    client = make_paho(version)
    client.connect(own)
    getattr(own, end)()
    client.ends.get(timeout=WAIT_S)
    client.client.publish("x", "from the gap", 1, retain=True)
    own.start()
    client.connected()
    client.subscribe("x", 1)
    assert client.texts(1) == ["from the gap"]


@each_paho
def test_paho_one_liners(broker, topic, version):
    """publish.single(), publish.multiple(), subscribe.simple(): the beginners' interface."""
    where = dict(hostname="127.0.0.1", port=broker.port, protocol=version)
    paho_publish.single(topic + "/a", "one", 1, retain=True, **where)
    paho_publish.multiple([(topic + "/b", "two", 2, True),
                           dict(topic=topic + "/c", payload="three", retain=True)], **where)
    clean = None if version == paho.MQTTv5 else True
    messages = paho_subscribe.simple(topic + "/+", 2, msg_count=3, clean_session=clean, **where)
    assert sorted((m.topic, m.payload, m.qos) for m in messages) == [
        (topic + "/a", b"one", 1), (topic + "/b", b"two", 2), (topic + "/c", b"three", 0)]


# MQTT.js

MQTTX = dict(protocolVersion=5, keepalive=60, clean=True, connectTimeout=10000, reconnectPeriod=200,
             properties=dict(topicAliasMaximum=0, userProperties=dict(app="MQTTX", tags=["a", "b"])))
MQTTBOX = dict(protocolVersion=4, protocolId="MQTT", keepalive=10, clean=True, connectTimeout=30000,
               reconnectPeriod=200)

each_app = pytest.mark.parametrize("app", [MQTTX, MQTTBOX], ids=["MQTTX", "MQTTBox"])


class MqttJs:
    """A MQTT.js client in a process of its own, see client.js."""

    def __init__(self, program):
        self.program = program

    def event(self, name):
        """The next event of that name; others stay."""
        return json.loads(self.program.take(rf'^{{"event":"{name}".*').group())

    def send(self, *command):
        self.program.write(json.dumps(command) + "\n")

    def do(self, *command):
        """Gives a command and waits until it is done; returns its result."""
        self.send(*command)
        answer = self.event(command[0])
        assert "error" not in answer, answer
        return answer.get("result")

    def subscribe(self, topic, **options):
        return self.do("subscribe", topic, options)

    def publish(self, topic, payload, **options):
        self.do("publish", topic, payload, options)

    def message(self):
        return self.event("message")

    def texts(self, n):
        return [self.message()["payload"] for _ in range(n)]


@pytest.fixture
def mqttjs(start, request):
    """mqttjs(app, broker=, wait=True, **options): a connected client with the options of that app and these."""
    def create(app, broker=None, wait=True, **options):
        host, port = (broker or request.getfixturevalue("broker")).address
        options = {**app, "host": host, "port": port, "clientId": "mqttx_" + os.urandom(4).hex(), **options}
        client = MqttJs(start(["node", os.path.join(ROOT, "test", "client.js"), json.dumps(options)], piped=True))
        client.id = options["clientId"]
        if wait:
            client.connack = client.event("connect")
        return client
    return create


@each_app
def test_mqttjs(broker, mqttjs, topic, app):
    one, two = mqttjs(app), mqttjs(app)
    broker.wait_log(r"as %s \(p%d, c1, k%d\)" % (one.id, max(2, app["protocolVersion"] // 5 * 5), app["keepalive"]))
    for qos in range(3):
        for reader, writer in ((one, two), (two, one), (one, one)):
            assert reader.subscribe(topic, qos=qos)[0]["qos"] == qos
            writer.publish(topic, "température", qos=qos)
            message = reader.message()
            assert (message["topic"], message["payload"], message["qos"], message["retain"]) == \
                (topic, "température", qos, False)
            reader.do("unsubscribe", topic)
    one.send("end")
    assert '"event":"message"' not in "".join(one.program.finish())
    broker.wait_log(rf"Received DISCONNECT from {one.id}")


@each_app
def test_mqttjs_retained(mqttjs, topic, app):
    client = mqttjs(app)
    client.publish(topic + "/a", "kept", qos=1, retain=True)
    client.publish(topic + "/b", "gone", qos=1, retain=True)
    client.publish(topic + "/b", "", qos=1, retain=True)
    client.subscribe(topic + "/#", qos=2)
    client.publish(topic + "/c", "live", qos=2, retain=True)
    messages = [client.message() for _ in range(2)]
    assert sorted((m["payload"], m["qos"], m["retain"]) for m in messages) == [("kept", 1, True), ("live", 2, False)]


@each_app
def test_mqttjs_will(mqttjs, topic, app):
    watcher = mqttjs(app)
    watcher.subscribe(topic, qos=2)
    properties = dict(contentType="text/plain", willDelayInterval=0, userProperties=dict(b="1", a=["2", "3"]))
    victim = mqttjs(app, will=dict(topic=topic, payload="gone", qos=2, retain=True, properties=properties))
    victim.program.kill()
    message = watcher.message()
    assert (message["payload"], message["qos"], message["retain"]) == ("gone", 2, False)
    if app is MQTTX:
        assert message["properties"] == dict(contentType="text/plain", userProperties=dict(b="1", a=["2", "3"]))


@each_end
@each_app
def test_mqttjs_reconnects(new_broker, mqttjs, pub, app, end):
    """After a restart MQTT.js subscribes again, and sends what was published in between."""
    own = new_broker(args=["-v"])
    client = mqttjs(app, own)
    client.subscribe("x", qos=1)
    getattr(own, end)()
    client.event("close")
    client.send("publish", "y", "from the gap", dict(qos=1, retain=True))
    own.start()
    client.event("connect")
    client.event("publish")
    own.wait_log(f"Sending SUBACK to {client.id}$", timeout=WAIT_S)
    pub("-t x -q 1 -m hello", own)
    assert client.texts(1) == ["hello"]
    client.subscribe("y", qos=1)
    assert client.texts(1) == ["from the gap"]


def lasting(app):
    """Options for a session that survives its connections."""
    options = dict(clean=False, resubscribe=False, reconnectPeriod=20)
    return options if app is MQTTBOX else dict(options, properties=dict(sessionExpiryInterval=100))


@each_app
def test_mqttjs_persistent_session(mqttjs, pub, topic, cid, app):
    first = mqttjs(app, clientId=cid, **lasting(app))
    assert not first.connack["sessionPresent"]
    first.subscribe(topic, qos=1)
    first.send("end")
    first.program.finish()
    for i in range(3):
        pub(f"-t {topic} -q 1 -m {i}")
    second = mqttjs(app, clientId=cid, **lasting(app))
    assert second.connack["sessionPresent"]
    assert second.texts(3) == ["0", "1", "2"]


@each_app
def test_mqttjs_broken_connections(new_broker, mqttjs, app):
    """QoS 2 over connections that break in the middle: each message comes once."""
    own = new_broker("max_inflight_messages 0")
    reader, writer = mqttjs(app, own, **lasting(app)), mqttjs(app, own, **lasting(app))
    reader.subscribe("x", qos=2)
    writer.send("flood", "x", 300, dict(qos=2))
    got = []
    for client in (reader, writer, reader, writer):
        got += reader.texts(20)
        client.send("cut")
        assert client.event("connect")["sessionPresent"]
    writer.event("flood")
    writer.publish("x", "end", qos=2)
    while got[-1] != "end":
        got += reader.texts(1)
    assert sorted(got[:-1], key=int) == [str(i) for i in range(300)]


def test_mqttjs_receive_maximum(mqttjs, topic):
    """MQTT.js takes no notice of it: too many messages of QoS 2 at once end the connection, but it comes
    back, slower, and each message arrives once."""
    reader, writer = mqttjs(MQTTX), mqttjs(MQTTX, **lasting(MQTTX))
    reader.subscribe(topic, qos=2)
    writer.do("flood", topic, 300, dict(qos=2))
    assert writer.event("disconnect")["reasonCode"] == 147
    assert sorted(reader.texts(300), key=int) == [str(i) for i in range(300)]
    writer.publish(topic, "end", qos=2)
    assert reader.texts(1) == ["end"]


@each_qos
@each_app
def test_mqttjs_many_messages(new_broker, mqttjs, app, qos):
    own = new_broker("max_queued_messages 0", "max_inflight_messages 0")
    reader, writer = mqttjs(app, own), mqttjs(app, own)
    reader.subscribe("x", qos=qos)
    writer.do("flood", "x", 2000, dict(qos=qos))
    assert reader.texts(2000) == [str(i) for i in range(2000)]
    assert reader.program.lines + writer.program.lines == []    # nothing else happened


def test_mqttjs_properties(mqttjs, topic):
    client = mqttjs(MQTTX)
    client.subscribe(topic, qos=1, properties=dict(subscriptionIdentifier=7, userProperties=dict(a="b")))
    properties = dict(payloadFormatIndicator=True, messageExpiryInterval=100, responseTopic="to/me",
                      correlationData="0123", userProperties=dict(b="1", a=["2", "3"]), contentType="text/plain")
    client.publish(topic, "hello", qos=1, properties=properties)
    got = client.message()["properties"]
    assert got == dict(properties, subscriptionIdentifier=7)
    assert list(got["userProperties"]) == ["b", "a"]


def test_mqttjs_subscribe_options(mqttjs, topic):
    one, two = mqttjs(MQTTX), mqttjs(MQTTX)
    one.publish(topic, "retained", qos=1, retain=True)
    one.subscribe(topic, qos=1, nl=True, rap=True, rh=2)
    two.subscribe(topic, qos=1)
    one.publish(topic, "from one", qos=1)
    two.publish(topic, "from two", qos=1, retain=True)
    assert two.texts(3) == ["retained", "from one", "from two"]
    message = one.message()
    assert (message["payload"], message["retain"]) == ("from two", True)


def test_mqttjs_topic_aliases(broker, mqttjs, topic):
    """In both directions; MQTT.js makes up its own and knows those of the broker."""
    writer = mqttjs(MQTTX, autoAssignTopicAlias=True)
    reader = mqttjs(MQTTX, properties=dict(topicAliasMaximum=2))
    assert writer.connack["properties"]["topicAliasMaximum"] > 0
    reader.subscribe(topic + "/#", qos=1)
    names = [f"{topic}/{i % 4}" for i in range(20)]
    for i, name in enumerate(names):
        writer.publish(name, str(i), qos=1)
    assert [(m["topic"], m["payload"]) for m in (reader.message() for _ in names)] == \
        [(name, str(i)) for i, name in enumerate(names)]
    broker.wait_log(rf"Received PUBLISH from {writer.id} \(d0, q1, r0, m\d+, '', ...")


@each_app
def test_mqttjs_keepalive(broker, mqttjs, topic, app):
    client = mqttjs(app, keepalive=1)
    broker.wait_log(f"Received PINGREQ from {client.id}", timeout=WAIT_S)
    broker.wait_log(f"Sending PINGRESP to {client.id}", timeout=WAIT_S)
    client.subscribe(topic)
    client.publish(topic, "still there")
    assert client.texts(1) == ["still there"]


@each_app
def test_mqttjs_refused(new_broker, mqttjs, app):
    own = new_broker(config="listener {port} 127.0.0.1\nallow_anonymous false\n")
    client = mqttjs(app, own, wait=False, username="pupil", password="secret", reconnectPeriod=0)
    error = client.event("error")
    assert error == dict(event="error", error="Connection refused: Not authorized", code=135 if app is MQTTX else 5)
    client.event("close")


def test_mqttjs_two_with_one_id(mqttjs, cid):
    first = mqttjs(MQTTX, clientId=cid, reconnectPeriod=0)
    mqttjs(MQTTX, clientId=cid, reconnectPeriod=0)
    assert first.event("disconnect")["reasonCode"] == 142
    first.event("close")


# All of them

@each_qos
def test_classroom(sub, pub, connect_paho, mqttjs, topic, qos):
    """Everybody hears everybody, whatever the program and the version."""
    shells = {version: sub(f"-V {version} -t {topic}/# -q {qos} -C 8") for version in VERSIONS}
    pahos = {f"paho{version}": connect_paho(version) for version in (paho.MQTTv31, paho.MQTTv311, paho.MQTTv5)}
    apps = {"MQTTX": mqttjs(MQTTX), "MQTTBox": mqttjs(MQTTBOX)}
    for client in (*pahos.values(), *apps.values()):
        client.subscribe(topic + "/#", qos=qos)
    for name in shells:
        pub(f"-V {name} -t {topic}/{name} -q {qos} -m {name}")
    for name, client in pahos.items():
        client.publish(f"{topic}/{name}", name, qos)
    for name, client in apps.items():
        client.publish(f"{topic}/{name}", name, qos=qos)
    everybody = sorted([*shells, *pahos, *apps])
    assert all(sorted(s.finish()) == everybody for s in shells.values())
    assert all(sorted(c.texts(8)) == everybody for c in (*pahos.values(), *apps.values()))
