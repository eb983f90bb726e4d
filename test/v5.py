"""What the tests of MQTT 5.0 share, on top of wire.py.

    from v5 import connect, dial    the fixtures of conftest.py, for version 5.0; what a
                                    server says is held against the tables of reason codes

The rest are constants, packets cut or bent on purpose, and ways to read an answer.
"""

import functools
import time

import pytest

import wire
from wire import (V5, CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE,
                  SUBACK, UNSUBSCRIBE, UNSUBACK, PINGRESP, DISCONNECT, AUTH)

SUCCESS = 0x00
DISCONNECT_WITH_WILL = 0x04
NO_SUBSCRIBERS = 0x10
NO_SUBSCRIPTION = 0x11
CONTINUE = 0x18
REAUTHENTICATE = 0x19
UNSPECIFIED = 0x80
MALFORMED = 0x81
PROTOCOL_ERROR = 0x82
UNSUPPORTED_VERSION = 0x84
BAD_CLIENT_ID = 0x85
BAD_CREDENTIALS = 0x86
NOT_AUTHORIZED = 0x87
SHUTTING_DOWN = 0x8B
BAD_METHOD = 0x8C
KEEP_ALIVE_TIMEOUT = 0x8D
TAKEN_OVER = 0x8E
FILTER_INVALID = 0x8F
TOPIC_INVALID = 0x90
ID_NOT_FOUND = 0x92
RECEIVE_MAXIMUM_EXCEEDED = 0x93
TOPIC_ALIAS_INVALID = 0x94
PACKET_TOO_LARGE = 0x95
QUOTA_EXCEEDED = 0x97
PAYLOAD_INVALID = 0x99
RETAIN_UNSUPPORTED = 0x9A
QOS_UNSUPPORTED = 0x9B

# The codes that a server may send in each packet.
SERVER_CODES = {
    CONNACK: {0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, *range(0x99, 0x9E), 0x9F},
    PUBACK: {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99},
    PUBREC: {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99},
    PUBREL: {0x00, 0x92},
    PUBCOMP: {0x00, 0x92},
    SUBACK: {0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2},
    UNSUBACK: {0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91},
    DISCONNECT: {0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F,
                 0x90, *range(0x93, 0xA3)},
    AUTH: {0x00, 0x18},
}

LASTING = {"session_expiry_interval": 60}

# A legal value for every property.
VALUES = {
    "payload_format_indicator": 1,
    "message_expiry_interval": 60,
    "content_type": "text/plain",
    "response_topic": "answer/here",
    "correlation_data": b"\x00\xff",
    "subscription_identifier": 300,
    "session_expiry_interval": 5,
    "assigned_client_identifier": "x",
    "server_keep_alive": 10,
    "authentication_method": "none",
    "authentication_data": b"data",
    "request_problem_information": 1,
    "will_delay_interval": 1,
    "request_response_information": 1,
    "response_information": "x",
    "server_reference": "x",
    "reason_string": "because",
    "receive_maximum": 10,
    "topic_alias_maximum": 10,
    "topic_alias": 1,
    "maximum_qos": 1,
    "retain_available": 1,
    "user_property": ("name", "value"),
    "maximum_packet_size": 1000,
    "wildcard_subscription_available": 1,
    "subscription_identifier_available": 1,
    "shared_subscription_available": 1,
}

# The properties that a client may send in each packet; 0 stands for the Will.
CLIENT_PROPERTIES = {
    CONNECT: {"session_expiry_interval", "authentication_method", "authentication_data",
              "request_problem_information", "request_response_information", "receive_maximum",
              "topic_alias_maximum", "user_property", "maximum_packet_size"},
    0: {"payload_format_indicator", "message_expiry_interval", "content_type", "response_topic",
        "correlation_data", "will_delay_interval", "user_property"},
    PUBLISH: {"payload_format_indicator", "message_expiry_interval", "content_type",
              "response_topic", "correlation_data", "topic_alias", "user_property"},
    PUBACK: {"reason_string", "user_property"},
    PUBREC: {"reason_string", "user_property"},
    PUBREL: {"reason_string", "user_property"},
    PUBCOMP: {"reason_string", "user_property"},
    SUBSCRIBE: {"subscription_identifier", "user_property"},
    UNSUBSCRIBE: {"user_property"},
    DISCONNECT: {"session_expiry_interval", "reason_string", "user_property"},
}

# What is not UTF-8 to the standard: overlong, truncated, surrogates, above U+10FFFF, U+0000.
BAD_STRINGS = [
    b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\xaf", b"\xe0\x9f\xbf", b"\xf0\x80\x80\xaf", b"\xf0\x8f\xbf\xbf",
    b"a\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc3(", b"\xe2\x82a", b"\x80", b"a\xbfb",
    b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\xbd\xed\xb8\x80",
    b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfe", b"\xff",
    b"\x00", b"a\x00b",
]


@pytest.fixture
def dial(dial):
    """dial() of conftest.py for 5.0. No packet of the server has a code that its table lacks.

    [MQTT5-3.2.2-8] [MQTT5-3.9.3-2] [MQTT5-3.11.3-2] [MQTT5-3.14.2-1]"""
    def create(*args, version=V5, **options):
        client = dial(*args, version=version, **options)
        read = client._read

        def checked(timeout=None):
            p = read(timeout)
            if version >= V5 and p.type in SERVER_CODES:
                codes = p.reasons if p.type in (SUBACK, UNSUBACK) else [p.reason]
                assert set(codes) <= SERVER_CODES[p.type], f"a code that a server never sends: {p}"
            return p

        def nothing():
            for _ in range(2):      # what the last packet has set free may follow the first PINGRESP
                client.send(wire.pingreq())
                client.expect(PINGRESP)

        client._read = checked
        client.nothing = nothing
        return client
    return create


@pytest.fixture
def connect(connect):
    """connect() of conftest.py for 5.0."""
    return functools.partial(connect, version=V5)


# Packets to send

def options(qos=0, no_local=False, as_published=False, handling=0):
    """The options byte of a subscription."""
    return qos | no_local << 2 | as_published << 3 | handling << 4


def body_of(raw):
    """The packet without its fixed header."""
    at = 1
    while raw[at] & 128:
        at += 1
    return raw[at + 1:]


def cut(raw, n):
    """The packet with the first n bytes of its body and a length that agrees."""
    return raw[:1] + wire.varint(n) + body_of(raw)[:n]


def with_flags(raw, flags):
    """The packet with other bits in its fixed header."""
    return bytes([raw[0] & 0xF0 | flags]) + raw[1:]


def longer(raw, extra):
    """The packet with these bytes behind its last field, and a length that agrees."""
    body = body_of(raw) + extra
    return raw[:1] + wire.varint(len(body)) + body


def with_properties(type, props):
    """A packet of that type which is sound but for its properties, maybe; 0 is a Will."""
    if type == CONNECT:
        return wire.connect(V5, "properties", properties=props)
    if type == 0:
        return wire.connect(V5, "properties", will=wire.Will("will", "x", properties=props))
    if type == PUBLISH:
        return wire.publish(V5, "properties", "x", 1, pid=1, properties=props)
    if type == SUBSCRIBE:
        return wire.subscribe(V5, 1, [("properties", 0)], props)
    if type == UNSUBSCRIBE:
        return wire.unsubscribe(V5, 1, ["properties"], props)
    if type == DISCONNECT:
        return wire.disconnect(V5, 0, props)
    return wire.ack(V5, type, 1, 0, props)


def bad_properties(type):
    """What is wrong in the properties of such a packet: (words, properties, codes that fit)."""
    for name in wire.PROPERTIES:
        one = (name, VALUES[name])
        if name == "subscription_identifier" and type == PUBLISH:
            yield f"{name} from a client", [one], (PROTOCOL_ERROR,)
        elif name == "server_reference" and type == DISCONNECT:
            yield f"{name} from a client", [one], (MALFORMED, PROTOCOL_ERROR)
        elif name not in CLIENT_PROPERTIES[type]:
            yield f"{name} in the wrong packet", [one], (MALFORMED,)
        else:
            if name != "user_property":
                yield f"{name} twice", [one, one], (PROTOCOL_ERROR,)
            yield f"{name} cut short", wire.prop(*one)[:-1], (MALFORMED,)
    for unknown in (0x00, 0x04, 0x1B, 0x2B, 0x7F, 0x80, 0xFF, 0x4000):
        yield f"unknown property {unknown:#x}", [(unknown, b"\x00")], (MALFORMED,)


# Answers to read

def rest(client):
    """All bytes that come before the end of the connection."""
    client.sock.settimeout(client.timeout)
    data = bytearray()
    while True:
        try:
            chunk = client.sock.recv(65536)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            client.close()
            return bytes(data)
        data += chunk


def expect_refused(client, *reasons):
    """The CONNECT is refused: CONNACK with one of these codes, or no word; then the end.

    [MQTT5-3.2.2-6] [MQTT5-3.2.2-7]"""
    try:
        p = client.expect(CONNACK)
    except wire.Closed:
        client.close()
        return None
    assert p.reason in reasons, f"expected one of {reasons}, got {p}"
    assert not p.session_present, f"Session Present in a refusal: {p}"
    client.expect_closed()
    return p


def expect_end(client, *reasons):
    """The server closes, with one of these codes in a DISCONNECT or without a word."""
    try:
        p = client.expect(DISCONNECT)
    except wire.Closed:
        client.close()
        return None
    assert p.reason in reasons, f"expected one of {reasons}, got {p}"
    client.expect_closed()
    return p


def collect(client):
    """All PUBLISHes now due to this client, in order. Each flow is seen through to its end."""
    found = []
    quiet = 0
    while quiet < 2:        # what the last ack has set free may follow the first PINGRESP
        quiet += 1
        client.send(wire.pingreq())
        while True:
            p = client.receive()
            if p.type == PINGRESP:
                break
            quiet = 0
            if p.type == PUBLISH:
                found.append(p)
                if p.qos:
                    client.ack(PUBACK if p.qos == 1 else PUBREC, p.pid)
            else:
                assert p.type == PUBREL, f"expected PUBLISH or PUBREL, got {p}"
                client.ack(PUBCOMP, p.pid)
    return found


def payloads(packets):
    return [p.payload for p in packets]


def taken(packet):
    """The message was accepted, whether or not anybody wants it."""
    assert packet.reason in (SUCCESS, NO_SUBSCRIBERS), packet
    return packet


def let_pass(start, seconds):
    """Lets time pass until so many seconds after start, where no event marks the moment."""
    time.sleep(max(0, start + seconds - time.monotonic()))
