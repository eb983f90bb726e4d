"""MQTT on the wire: packets as bytes, a client to send them, a broker to talk to.

Three parts, each usable alone:

  encoders   connect(), publish(), subscribe()... return the bytes of a packet.
             They never refuse: a test may ask for any value, legal or not.
  decode()   turns what a server sent into a Packet. It is strict: whatever the
             standard forbids a server to send is an AssertionError, so every
             test checks these statements by the way: [MQTT-2.2.2-1],
             [MQTT-2.3.1-1], [MQTT-3.3.1-2], [MQTT-3.3.2-2], [MQTT-4.3.1-1],
             [MQTT5-1.5.5-1], [MQTT5-2.1.3-1], [MQTT5-2.2.1-4].
  Client     a blocking socket with a deadline on every wait.
  Broker     the program under test: $MIDGE, split into words, by default
             build/midge, with a config file in a directory of its own.

The version (3, 4 or 5: MQTT 3.1, 3.1.1, 5.0) is given once per Client; the
encoders take it as first argument where the bytes depend on it.

Properties are a dict or a list of pairs, (name, value), encoded in the order
given: {"receive_maximum": 5, "user_property": ("k", "v")}. A list of pairs
repeats a name. bytes stand for a raw property block, its length is added.
"""

import base64
import collections
import hashlib
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest

V31, V311, V5 = 3, 4, 5

(CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE,
 SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH) = range(1, 16)

NAMES = ("0 CONNECT CONNACK PUBLISH PUBACK PUBREC PUBREL PUBCOMP SUBSCRIBE SUBACK "
         "UNSUBSCRIBE UNSUBACK PINGREQ PINGRESP DISCONNECT AUTH").split()

# name: identifier, type, packets in which a server may send it
PROPERTIES = {
    "payload_format_indicator": (0x01, "byte", {PUBLISH}),
    "message_expiry_interval": (0x02, "u32", {PUBLISH}),
    "content_type": (0x03, "string", {PUBLISH}),
    "response_topic": (0x08, "string", {PUBLISH}),
    "correlation_data": (0x09, "binary", {PUBLISH}),
    "subscription_identifier": (0x0B, "varint", {PUBLISH}),
    "session_expiry_interval": (0x11, "u32", {CONNACK}),
    "assigned_client_identifier": (0x12, "string", {CONNACK}),
    "server_keep_alive": (0x13, "u16", {CONNACK}),
    "authentication_method": (0x15, "string", {CONNACK, AUTH}),
    "authentication_data": (0x16, "binary", {CONNACK, AUTH}),
    "request_problem_information": (0x17, "byte", set()),
    "will_delay_interval": (0x18, "u32", set()),
    "request_response_information": (0x19, "byte", set()),
    "response_information": (0x1A, "string", {CONNACK}),
    "server_reference": (0x1C, "string", {CONNACK, DISCONNECT}),
    "reason_string": (0x1F, "string", {CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP,
                                       SUBACK, UNSUBACK, DISCONNECT, AUTH}),
    "receive_maximum": (0x21, "u16", {CONNACK}),
    "topic_alias_maximum": (0x22, "u16", {CONNACK}),
    "topic_alias": (0x23, "u16", {PUBLISH}),
    "maximum_qos": (0x24, "byte", {CONNACK}),
    "retain_available": (0x25, "byte", {CONNACK}),
    "user_property": (0x26, "pair", {CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP,
                                     SUBACK, UNSUBACK, DISCONNECT, AUTH}),
    "maximum_packet_size": (0x27, "u32", {CONNACK}),
    "wildcard_subscription_available": (0x28, "byte", {CONNACK}),
    "subscription_identifier_available": (0x29, "byte", {CONNACK}),
    "shared_subscription_available": (0x2A, "byte", {CONNACK}),
}
PROPERTY_OF_ID = {row[0]: name for name, row in PROPERTIES.items()}

Will = collections.namedtuple("Will", "topic payload qos retain properties",
                              defaults=(b"", 0, False, None))


# Encoders

def u16(n):
    return struct.pack(">H", n)


def u32(n):
    return struct.pack(">I", n)


def varint(n, length=0):
    """A Variable Byte Integer, padded with 80 bytes up to length if given."""
    out = bytearray()
    while True:
        more = n > 127 or len(out) + 1 < length
        out.append(n & 127 | (128 if more else 0))
        n >>= 7
        if not more:
            return bytes(out)


def as_bytes(value):
    return value.encode() if isinstance(value, str) else bytes(value)


def string(value):
    """A length-prefixed string; bytes are taken as they are, valid or not."""
    value = as_bytes(value)
    return u16(len(value)) + value


def prop(name, value):
    """One property, by name or by number; a number's value is raw bytes."""
    if isinstance(name, int):
        return varint(name) + value
    number, kind, _ = PROPERTIES[name]
    if kind == "byte":
        body = bytes([value])
    elif kind == "pair":
        body = string(value[0]) + string(value[1])
    else:
        body = {"u16": u16, "u32": u32, "varint": varint, "string": string, "binary": string}[kind](value)
    return varint(number) + body


def properties(props):
    """A property block with its length."""
    if isinstance(props, (bytes, bytearray)):
        body = bytes(props)
    else:
        items = props.items() if isinstance(props, dict) else props or ()
        body = b"".join(prop(name, value) for name, value in items)
    return varint(len(body)) + body


def packet(type, flags=0, body=b""):
    return bytes([type << 4 | flags]) + varint(len(body)) + body


def connect(version=V311, client_id="", clean=True, keepalive=60, username=None, password=None,
            will=None, properties=None, name=None, level=None, flags=None):
    """CONNECT. name, level and flags replace what the other arguments imply."""
    if flags is None:
        flags = 2 if clean else 0
        if will is not None:
            flags |= 4 | will.qos << 3 | (32 if will.retain else 0)
        flags |= (64 if password is not None else 0) | (128 if username is not None else 0)
    body = string(name if name is not None else "MQIsdp" if version == V31 else "MQTT")
    body += bytes([level if level is not None else version, flags]) + u16(keepalive)
    body += _properties(version, properties) + string(client_id)
    if will is not None:
        body += _properties(version, will.properties) + string(will.topic) + string(will.payload)
    body += b"".join(string(s) for s in (username, password) if s is not None)
    return packet(CONNECT, 0, body)


def publish(version, topic, payload=b"", qos=0, retain=False, dup=False, pid=None, properties=None):
    flags = (8 if dup else 0) | qos << 1 | (1 if retain else 0)
    body = string(topic) + (u16(pid) if pid is not None else b"")
    return packet(PUBLISH, flags, body + _properties(version, properties) + as_bytes(payload))


def ack(version, type, pid, reason=None, properties=None):
    """PUBACK, PUBREC, PUBREL or PUBCOMP; the short form unless a reason is given (5.0)."""
    body = u16(pid)
    if reason is not None:
        body += bytes([reason])
    if properties is not None:
        body += _properties(version, properties)
    return packet(type, 2 if type == PUBREL else 0, body)


def subscribe(version, pid, filters, properties=None):
    """SUBSCRIBE; filters are (filter, options byte) pairs."""
    body = b"".join(string(f) + bytes([options]) for f, options in filters)
    return packet(SUBSCRIBE, 2, u16(pid) + _properties(version, properties) + body)


def unsubscribe(version, pid, filters, properties=None):
    body = b"".join(string(f) for f in filters)
    return packet(UNSUBSCRIBE, 2, u16(pid) + _properties(version, properties) + body)


def pingreq():
    return packet(PINGREQ)


def disconnect(version=V311, reason=None, properties=None):
    """DISCONNECT; empty unless a reason is given (5.0)."""
    body = bytes([reason]) if reason is not None else b""
    if properties is not None:
        body += _properties(version, properties)
    return packet(DISCONNECT, 0, body)


def auth(reason, properties=None):
    return packet(AUTH, 0, bytes([reason]) + _properties(V5, properties))


def _properties(version, props):
    return properties(props) if version >= V5 else b""


# Decoder

class Packet:
    """A packet from the server.

    Always: type, flags, raw (all bytes), properties (list of (name, value)).
    CONNACK: session_present, reason. PUBLISH: topic, payload, qos, retain, dup,
    pid (None for QoS 0). PUBACK...PUBCOMP: pid, reason. SUBACK, UNSUBACK: pid,
    reasons (a list, empty for a 3.x UNSUBACK). DISCONNECT, AUTH: reason.
    """

    def __init__(self, type, flags, raw):
        self.type = type
        self.flags = flags
        self.raw = raw
        self.properties = []

    def prop(self, name, default=None):
        """The value of the first property of that name."""
        return next((v for n, v in self.properties if n == name), default)

    def props(self, name):
        """The values of all properties of that name, in order."""
        return [v for n, v in self.properties if n == name]

    def __repr__(self):
        fields = {k: v for k, v in vars(self).items() if k not in ("type", "flags", "raw") and v != []}
        fields = " ".join(f"{k}={str(v)[:80]}" for k, v in fields.items())
        return f"<{NAMES[self.type]} {fields} [{self.raw[:40].hex(' ')}]>"


class _Reader:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, n):
        assert self.at + n <= len(self.data), f"field runs past the end of {self.data.hex(' ')}"
        self.at += n
        return self.data[self.at - n:self.at]

    def left(self):
        return len(self.data) - self.at

    def byte(self):
        return self.take(1)[0]

    def u16(self):
        return struct.unpack(">H", self.take(2))[0]

    def u32(self):
        return struct.unpack(">I", self.take(4))[0]

    def varint(self):
        value = 0
        for i in range(4):
            b = self.byte()
            value |= (b & 127) << 7 * i
            if not b & 128:
                assert b or not i, "variable byte integer is longer than needed"
                return value
        raise AssertionError("variable byte integer of more than 4 bytes")

    def binary(self):
        return self.take(self.u16())

    def string(self):
        text = self.binary().decode()
        assert "\0" not in text, "U+0000 in a string"
        return text

    def pair(self):
        return self.string(), self.string()

    def rest(self):
        return self.take(self.left())


def _decode_properties(body, type):
    block = _Reader(body.take(body.varint()))
    found = []
    while block.left():
        number = block.varint()
        assert number in PROPERTY_OF_ID, f"unknown property {number:#x}"
        name = PROPERTY_OF_ID[number]
        _, kind, packets = PROPERTIES[name]
        assert type in packets, f"property {name} in {NAMES[type]}"
        repeatable = name in ("user_property", "subscription_identifier")
        assert repeatable or name not in dict(found), f"property {name} twice"
        found.append((name, getattr(block, kind)()))
    return found


def decode(version, raw):
    """One whole packet from a server, as bytes, to a Packet."""
    head = _Reader(raw)
    first = head.byte()
    p = Packet(first >> 4, first & 15, bytes(raw))
    head.varint()
    body = _Reader(head.rest())
    known = [CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, PINGRESP]
    assert p.type in known + [DISCONNECT, AUTH] * (version >= V5), f"a server sent {raw.hex(' ')}"
    if p.type != PUBLISH:
        assert p.flags == (2 if p.type == PUBREL else 0), f"header flags in {raw.hex(' ')}"
    if p.type == CONNACK:
        flags = body.byte()
        assert flags in (0, 1), f"CONNACK flags {flags:#x}"
        p.session_present = flags == 1
        p.reason = body.byte()
        if version >= V5:
            p.properties = _decode_properties(body, p.type)
    elif p.type == PUBLISH:
        _decode_publish(version, p, body)
    elif p.type in (PUBACK, PUBREC, PUBREL, PUBCOMP):
        p.pid = body.u16()
        assert p.pid, "packet id 0"
        _decode_reason(version, p, body)
    elif p.type in (SUBACK, UNSUBACK):
        p.pid = body.u16()
        if version >= V5:
            p.properties = _decode_properties(body, p.type)
        p.reasons = list(body.rest()) if version >= V5 or p.type == SUBACK else []
    elif p.type in (DISCONNECT, AUTH):
        _decode_reason(version, p, body)
    assert not body.left(), f"surplus bytes in {raw.hex(' ')}"
    return p


def _decode_publish(version, p, body):
    p.dup, p.qos, p.retain = bool(p.flags & 8), p.flags >> 1 & 3, bool(p.flags & 1)
    assert p.qos < 3, "QoS 3"
    assert p.qos or not p.dup, "DUP with QoS 0"
    p.topic = body.string()
    assert not set("+#") & set(p.topic), f"wildcard in topic {p.topic}"
    p.pid = body.u16() if p.qos else None
    assert p.pid != 0, "packet id 0"
    if version >= V5:
        p.properties = _decode_properties(body, p.type)
    assert p.topic or p.prop("topic_alias"), "empty topic without alias"
    p.payload = bytes(body.rest())


def _decode_reason(version, p, body):
    p.reason = body.byte() if version >= V5 and body.left() else 0
    if version >= V5 and body.left():
        p.properties = _decode_properties(body, p.type)


# Client

class Closed(AssertionError):
    """The server closed the connection where a packet was expected."""


class Client:
    """One connection to a broker.

    address is (host, port) or the path of a unix socket; with an ssl.SSLContext as context
    the handshake follows. Nothing is sent before connect() or send(). receive(), expect() and expect_publish() look at the
    very next packet; subscribe(), unsubscribe(), publish() and ping() wait for
    their answer and keep, in order, whatever arrives before it, in inbox.
    """

    def __init__(self, address, version=V311, timeout=5, receive_buffer=None, context=None):
        self.version = version
        self.timeout = timeout
        self.connack = None
        self.closed = False
        self._bytes = bytearray()
        self.inbox = collections.deque()
        self._pid = 0
        family = socket.AF_UNIX if isinstance(address, str) else \
            socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        if family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context:     # an end without close_notify is an error for this socket
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost", suppress_ragged_eofs=False)

    # Bytes and packets

    def send(self, *data):
        """Sends raw bytes, all arguments in one write."""
        self.sock.settimeout(self.timeout)
        try:
            self.sock.sendall(b"".join(data))
        except (BrokenPipeError, ConnectionResetError):
            pass    # closed by the server: a fact for the next expect to find

    def _read(self, timeout=None):
        """One packet from the socket; Closed at the end of the stream."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            size = self._packet_size()
            if size and len(self._bytes) >= size:
                raw = bytes(self._bytes[:size])
                del self._bytes[:size]
                return decode(self.version, raw)
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"no packet in time; got {bytes(self._bytes).hex(' ')!r}")
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            except socket.timeout:
                continue
            if not data:
                assert not self._bytes, f"closed inside a packet: {bytes(self._bytes).hex(' ')}"
                raise Closed("closed by the server")
            self._bytes += data

    def _packet_size(self):
        """The size of the packet at the start of the buffer, 0 while unknown."""
        size = 0
        for i, b in enumerate(self._bytes[1:5]):
            size |= (b & 127) << 7 * i
            if not b & 128:
                return 2 + i + size
        assert len(self._bytes) < 5, f"length of more than 4 bytes: {self._bytes[:5].hex(' ')}"
        return 0

    def receive(self, timeout=None):
        """The next packet, whatever it is."""
        return self.inbox.popleft() if self.inbox else self._read(timeout)

    def await_packet(self, type, pid=None):
        """The next packet of this type (and id); others are kept for later."""
        for p in self.inbox:
            if p.type == type and (pid is None or p.pid == pid):
                self.inbox.remove(p)
                return p
        while True:
            p = self._read()
            if p.type == type and (pid is None or p.pid == pid):
                return p
            self.inbox.append(p)

    def expect(self, type, timeout=None, **fields):
        """The next packet must be of this type with these fields."""
        p = self.receive(timeout)
        assert p.type == type, f"expected {NAMES[type]}, got {p}"
        for name, value in fields.items():
            assert getattr(p, name) == value, f"expected {name}={value!r:.200}, got {p}"
        return p

    def expect_closed(self, timeout=None):
        """The server closes the connection and sends nothing before."""
        try:
            p = self.receive(timeout)
        except Closed:
            self.close()
            return
        raise AssertionError(f"expected the end of the connection, got {p}")

    def expect_disconnect(self, *reasons, timeout=None):
        """5.0: DISCONNECT with one of these reasons (any if none is given), then the end."""
        p = self.expect(DISCONNECT, timeout)
        assert not reasons or p.reason in reasons, f"expected one of {reasons}, got {p}"
        self.expect_closed()
        return p

    def nothing(self):
        """Nothing has been sent to this client: the answers to two PINGREQs come first.

        Two, as a server may answer the first before it looks at its queues."""
        for _ in range(2):
            self.send(pingreq())
            self.expect(PINGRESP)

    def ping(self):
        """Waits until the server has read everything sent so far."""
        self.send(pingreq())
        self.await_packet(PINGRESP)

    def next_pid(self):
        self._pid = self._pid % 65535 + 1
        return self._pid

    # Packets of a client

    def connect(self, client_id="", clean=True, reason=0, **fields):
        """CONNECT, returns the CONNACK, which must have this reason (None: any)."""
        self.send(connect(self.version, client_id, clean, **fields))
        self.connack = self.expect(CONNACK)
        assert reason in (None, self.connack.reason), f"expected reason {reason}, got {self.connack}"
        return self.connack

    def subscribe(self, *filters, qos=0, properties=None, pid=None, check=True):
        """Subscribes and returns the SUBACK. A filter is a string or (filter, options byte).

        Each filter must be granted at the QoS asked for, unless check is False."""
        pid = pid or self.next_pid()
        pairs = [f if isinstance(f, tuple) else (f, qos) for f in filters]
        self.send(subscribe(self.version, pid, pairs, properties))
        suback = self.await_packet(SUBACK)
        assert suback.pid == pid, f"expected packet id {pid}, got {suback}"
        assert len(suback.reasons) == len(pairs), f"expected {len(pairs)} reasons, got {suback}"
        if check:
            assert suback.reasons == [options & 3 for _, options in pairs], f"not granted: {suback}"
        return suback

    def unsubscribe(self, *filters, properties=None, pid=None):
        """Unsubscribes and returns the UNSUBACK."""
        pid = pid or self.next_pid()
        self.send(unsubscribe(self.version, pid, filters, properties))
        unsuback = self.await_packet(UNSUBACK)
        assert unsuback.pid == pid, f"expected packet id {pid}, got {unsuback}"
        if self.version >= V5:
            assert len(unsuback.reasons) == len(filters), f"expected {len(filters)} reasons, got {unsuback}"
        return unsuback

    def publish(self, topic, payload=b"", qos=0, retain=False, dup=False, pid=None, properties=None,
                flow=True):
        """PUBLISH. With flow, sees it through and returns the last ack: PUBACK, PUBCOMP or an
        error PUBREC. Without, or for QoS 0, only sends it and returns the packet id."""
        if qos and pid is None:
            pid = self.next_pid()
        self.send(publish(self.version, topic, payload, qos, retain, dup, pid, properties))
        if not qos or not flow:
            return pid
        if qos == 1:
            return self.await_packet(PUBACK, pid)
        pubrec = self.await_packet(PUBREC, pid)
        return pubrec if pubrec.reason >= 0x80 else self.pubrel(pid)

    def pubrel(self, pid):
        """PUBREL, returns the PUBCOMP."""
        self.ack(PUBREL, pid)
        return self.await_packet(PUBCOMP, pid)

    def ack(self, type, pid, reason=None, properties=None):
        """Sends a PUBACK, PUBREC, PUBREL or PUBCOMP."""
        self.send(ack(self.version, type, pid, reason, properties))

    def expect_publish(self, topic=None, payload=None, qos=None, retain=None, dup=False, pid=None,
                       flow=True, timeout=None):
        """The next packet must be a PUBLISH with these fields (None: any).

        With flow, acknowledges it up to PUBACK or PUBCOMP; without, that is left to the test."""
        payload = None if payload is None else as_bytes(payload)
        wanted = dict(topic=topic, payload=payload, qos=qos, retain=retain, dup=dup, pid=pid)
        p = self.expect(PUBLISH, timeout, **{k: v for k, v in wanted.items() if v is not None})
        if flow and p.qos == 1:
            self.ack(PUBACK, p.pid)
        elif flow and p.qos == 2:
            self.ack(PUBREC, p.pid)
            self.await_packet(PUBREL, p.pid)
            self.ack(PUBCOMP, p.pid)
        return p

    def disconnect(self, reason=None, properties=None):
        """DISCONNECT; waits until the server has seen it, that is until it closes."""
        self.send(disconnect(self.version, reason, properties))
        try:
            while True:
                self._read()
        except Closed:
            self.close()

    def close(self, reset=False):
        """Closes abruptly: no DISCONNECT; with a TCP reset if asked."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.closed = True


# Broker

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

DEFAULT_CONFIG = "listener {port} 127.0.0.1\nallow_anonymous true\n"

RUNNING = r"(midge|mosquitto) version (\S+) running"


SANITIZER = r"(ERROR|WARNING|SUMMARY): (Address|Leak|Thread)Sanitizer|runtime error:"


def command():
    """The words of $MIDGE; those that name a file in the repository made absolute."""
    words = shlex.split(os.environ.get("MIDGE") or "build/midge")
    return [os.path.join(ROOT, w) if os.path.exists(os.path.join(ROOT, w)) else w for w in words]


def free_port(family=socket.AF_INET, host="127.0.0.1"):
    with socket.socket(family) as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def has_ipv6():
    """Whether this machine has ::1."""
    try:
        free_port(socket.AF_INET6, "::1")
        return True
    except OSError:
        return False


def password_line(user, password):
    """A line of a password file, as mosquitto_passwd 2.0 writes it."""
    salt = b"saltsaltsalt"
    hashed = hashlib.pbkdf2_hmac("sha512", as_bytes(password), salt, 101)
    return f"{user}:$7$101${base64.b64encode(salt).decode()}${base64.b64encode(hashed).decode()}\n"


def wait_for(condition, what, timeout=5):
    """Polls for what sends no event (a file, a process); returns the first true value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"no {what} in time"
        time.sleep(0.01)


class Broker:
    """A broker process with a directory of its own, dir, removed by cleanup().

    lines are option lines added to DEFAULT_CONFIG; config replaces all of it; None for
    no -c at all. In both, and in args, {port}, {port2}... stand for free ports and {dir}
    for the directory. broker.port and broker.address belong to {port}.
    """

    def __init__(self, *lines, config=DEFAULT_CONFIG, args=(), env=None):
        self.dir = tempfile.mkdtemp(prefix="midge-test-")
        os.chmod(self.dir, 0o777)   # a broker started by root gives up its rights
        self.config = None if config is None else config + "".join(line + "\n" for line in lines)
        self.args = list(args)
        self.env = env or {}
        self.forbidden = False      # True: the test makes calls that the sandbox refuses
        self.ports = {}
        self.process = None
        self.lines = []
        self._news = threading.Condition()

    # Start and stop

    def spawn(self):
        """Starts the program and does not wait for anything."""
        args = [self._fill(a) for a in self.args]
        if self.config is not None:
            self.conf = os.path.join(self.dir, "midge.conf")
            with open(self.conf, "w") as f:
                f.write(self._fill(self.config))
            args = ["-c", self.conf] + args
        with self._news:
            self.lines = []
        self.process = subprocess.Popen(
            command() + args, cwd=self.dir, env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._output = bytearray()
        self._readers = [threading.Thread(target=self._read_log, args=(self.process.stderr,), daemon=True),
                         threading.Thread(target=self._read_output, args=(self.process.stdout,), daemon=True)]
        for thread in self._readers:
            thread.start()
        return self

    def start(self):
        """Starts the program and waits until it says that it runs. The test is skipped if the
        program refuses an option as not implemented yet."""
        for _ in range(5):
            self.spawn()
            if self._await_running():
                return self
            self.skip_if_missing()
            fresh = not any("ddress already in use" in line for line in self.lines)
            assert not fresh, f"broker did not start:\n{self.log()}"
            self.ports = {}     # somebody else took the port: try another one
        raise AssertionError(f"no free port:\n{self.log()}")

    def skip_if_missing(self):
        """Skips the test if the program has said that it lacks an option that the test uses."""
        missing = re.search(r"\w+ (cannot be used|has no effect).*(does not have this|nothing on disk) yet", self.log())
        if missing:
            raise unittest.SkipTest(missing.group())

    def stop(self):
        """SIGTERM: the program must end with code 0 and without complaints of a sanitizer."""
        if self.process is None:
            return
        assert self.process.poll() is None, \
            f"broker ended by itself with {self.process.returncode}:\n{self.tail()}"
        self.process.send_signal(signal.SIGTERM)
        code = self.wait()
        assert code == 0, f"exit code {code}:\n{self.tail()}"

    def kill(self):
        """SIGKILL, as a power cut would."""
        self.process.kill()
        self.wait()

    def restart(self):
        """Stops and starts again with the same config, directory and ports."""
        self.stop()
        return self.start()

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=15):
        """Waits for the end of the program, returns its exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"broker did not end:\n{self.tail()}") from None
        finally:
            for thread in self._readers:
                thread.join(5)
            self.process.stdout.close()
            self.process.stderr.close()
            self.process = None
        assert not re.search(SANITIZER, self.log()), self.tail()
        assert self.forbidden or "The sandbox refused" not in self.log(), self.log()
        return code

    def run(self, timeout=15):
        """For programs that end by themselves: returns (exit code, stdout, stderr)."""
        self.spawn()
        code = self.wait(timeout)
        return code, self.output(), self.log()

    def cleanup(self):
        """Ends the program if it still runs and removes the directory."""
        try:
            self.stop()
        finally:
            if self.process is not None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.dir, ignore_errors=True)

    def _fill(self, text):
        def value(match):
            key = match.group(1)
            if key == "dir":
                return self.dir
            if key not in self.ports:
                self.ports[key] = free_port()
            return str(self.ports[key])
        return re.sub(r"\{(dir|port\d*)\}", value, text)

    @property
    def port(self):
        return self.ports["port"]

    @property
    def address(self):
        return ("127.0.0.1", self.port)

    @property
    def pid(self):
        return self.process.pid

    def path(self, name):
        """The path of a file in the directory of this broker."""
        return os.path.join(self.dir, name)

    # Log

    def log(self):
        """All of stderr so far."""
        with self._news:
            return "\n".join(self.lines)

    def tail(self):
        """The end of stderr, or what is around the first complaint of a sanitizer."""
        with self._news:
            for i, line in enumerate(self.lines):
                if re.search(SANITIZER, line):
                    return "\n".join(self.lines[max(0, i - 10):i + 25])
            return "\n".join(self.lines[-30:])

    def output(self):
        """All of stdout so far."""
        return self._output.decode(errors="replace")

    def mark(self):
        """The number of log lines so far, for wait_log(after=)."""
        with self._news:
            return len(self.lines)

    def take_log(self):
        """The lines so far, which are forgotten: for brokers that run for long."""
        with self._news:
            taken, self.lines = self.lines, []
            return taken

    def wait_log(self, regex, after=0, timeout=5):
        """The match of the first line of stderr, from number `after` on, that the regex finds."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                for line in self.lines[after:]:
                    found = re.search(regex, line)
                    if found:
                        return found
                    after += 1
                left = deadline - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    raise AssertionError(f"no line /{regex}/ in\n" + "\n".join(self.lines))

    def _await_running(self):
        """True once the program says that it runs, False when it has ended instead."""
        deadline = time.monotonic() + 20
        with self._news:
            while not any(re.search(RUNNING, line) for line in self.lines):
                assert time.monotonic() < deadline, "broker does not say that it runs:\n" + "\n".join(self.lines)
                self._news.wait(0.1)
                if self.process.poll() is not None:
                    break
            else:
                return True
        self.wait()
        return False

    def _read_log(self, stream):
        for line in stream:
            with self._news:
                self.lines.append(line.decode(errors="replace").rstrip("\r\n"))
                self._news.notify_all()

    def _read_output(self, stream):
        for chunk in iter(lambda: stream.read1(65536), b""):
            self._output += chunk
