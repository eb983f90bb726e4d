"""MQTT 5.0: the beginning and the end of a connection.

CONNECT and CONNACK (3.1, 3.2), keep alive (3.1.2.10), DISCONNECT (3.14), AUTH (3.15, 4.12)."""

import base64
import hashlib
import select
import time

import pytest

import wire
from v5 import *
from v5 import connect, dial
from wire import V5, Will


# 3.1.0: the first packet

@pytest.mark.parametrize("first", [
    wire.publish(V5, "t", "x"), wire.subscribe(V5, 1, [("t", 0)]), wire.pingreq(),
    wire.disconnect(V5), wire.auth(CONTINUE), wire.ack(V5, PUBACK, 1), wire.ack(V5, PUBREL, 1),
    b"\x00\x00", b"\x20\x03\x00\x00\x00", b"\xff\xff\xff\xff\xff"],
    ids=["PUBLISH", "SUBSCRIBE", "PINGREQ", "DISCONNECT", "AUTH", "PUBACK", "PUBREL",
         "type-0", "CONNACK", "noise"])
def test_first_packet_is_connect(dial, cid, first):
    """After the connection is established the first packet from the client must be a CONNECT.
    Otherwise the server closes; it sends no DISCONNECT, and nothing else, before a CONNACK.
    [MQTT5-3.1.0-1] [MQTT5-3.14.0-1] [MQTT5-3.2.0-1]"""
    client = dial()
    client.send(first, wire.connect(V5, cid))
    assert rest(client) == b""


def test_second_connect(connect, topic):
    """A second CONNECT is a protocol error. [MQTT5-3.1.0-2] [MQTT5-3.2.0-2]
    The connection did not end with DISCONNECT 0x00, so the Will is due. [MQTT5-3.1.2-8]"""
    watcher = connect()
    watcher.subscribe(topic)
    client = connect(will=Will(topic, "gone"))
    client.send(wire.connect(V5, client.id))
    client.expect_disconnect(PROTOCOL_ERROR)
    watcher.expect_publish(topic, "gone")


# 3.1.2.1, 3.1.2.2: protocol name and version

@pytest.mark.parametrize("name", ["", "M", "MQT", "mqtt", "MQTX", "MQTTT", "MQIsdp", b"MQTT\0", b"\xff\xff"])
def test_protocol_name(dial, cid, name):
    """Another protocol name: CONNACK 0x84 or nothing, and the end; 0x81 if it is no string at all.
    MQIsdp is the name of 3.1, whose answer has another form. [MQTT5-3.1.2-1]"""
    client = dial()
    client.send(wire.connect(V5, cid, name=name), wire.pingreq())
    answer = rest(client)
    if answer and not (name == "MQIsdp" and answer == b"\x20\x02\x00\x01"):
        p = wire.decode(V5, answer)
        assert p.type == CONNACK and not p.session_present
        assert p.reason == UNSUPPORTED_VERSION or isinstance(name, bytes) and p.reason == MALFORMED


@pytest.mark.parametrize("level", [0, 1, 2, 3, 6, 7, 0x7F, 0x85, 0xFF])
def test_protocol_version(dial, cid, level):
    """A version that the server does not serve: CONNACK 0x84 or nothing, and the end; up to 4
    in the form of 3.1.1. [MQTT5-3.1.2-2]"""
    client = dial()
    client.send(wire.connect(V5, cid, level=level), wire.pingreq())
    assert rest(client) in [b"", b"\x20\x03\x00\x84\x00"] + [b"\x20\x02\x00\x01"] * (level < 5)


# 3.1.2.3 to 3.1.3: flags and payload

FULL = wire.connect(V5, "full", False, 60, "user", b"secret",
                    Will("will/topic", b"payload", 1, True, {"will_delay_interval": 1, "user_property": ("a", "b")}),
                    {"session_expiry_interval": 1, "receive_maximum": 9, "user_property": ("c", "d")})


def head(flags, props=b"\x00"):
    """CONNECT up to the payload."""
    return wire.string("MQTT") + bytes([5, flags]) + wire.u16(60) + props


def whole(body):
    return wire.packet(CONNECT, 0, body)


S = wire.string
WILL = b"\x00" + S("t") + S("p")

BAD_CONNECTS = {
    # [MQTT5-3.1.2-3] bit 0 of the flags is reserved
    "reserved-flag": (wire.connect(V5, "c", flags=3), [MALFORMED]),
    # [MQTT5-3.1.2-11] no Will, yet a Will QoS
    "will-qos-1-without-will": (wire.connect(V5, "c", flags=2 | 1 << 3), [MALFORMED, PROTOCOL_ERROR]),
    "will-qos-2-without-will": (wire.connect(V5, "c", flags=2 | 2 << 3), [MALFORMED, PROTOCOL_ERROR]),
    # [MQTT5-3.1.2-13] no Will, yet Will Retain
    "will-retain-without-will": (wire.connect(V5, "c", flags=2 | 32), [MALFORMED, PROTOCOL_ERROR]),
    # [MQTT5-3.1.2-12] Will QoS 3
    "will-qos-3": (wire.connect(V5, "c", flags=2 | 4 | 3 << 3, will=Will("t", "p")), [MALFORMED]),
    "will-qos-3-without-will": (wire.connect(V5, "c", flags=2 | 3 << 3), [MALFORMED, PROTOCOL_ERROR]),
    # [MQTT5-3.1.2-9] with Will Flag 1 its properties, topic and payload must follow
    "will-absent": (whole(head(2 | 4) + S("c")), [MALFORMED]),
    "will-properties-alone": (whole(head(2 | 4) + S("c") + b"\x00"), [MALFORMED]),
    "will-payload-absent": (whole(head(2 | 4) + S("c") + b"\x00" + S("t")), [MALFORMED]),
    "will-payload-short": (whole(head(2 | 4) + S("c") + b"\x00" + S("t") + b"\x00\x05abcd"), [MALFORMED]),
    "will-properties-absent": (whole(head(2 | 4) + S("c") + S("t") + S("p")), [MALFORMED]),
    # [MQTT5-3.1.2-16] a user name that the flags do not announce
    "user-without-flag": (whole(head(2) + S("c") + S("user")), [MALFORMED, PROTOCOL_ERROR]),
    # [MQTT5-3.1.2-17] the flags announce a user name that is not there
    "user-absent": (whole(head(2 | 128) + S("c")), [MALFORMED, PROTOCOL_ERROR]),
    "user-absent-after-will": (whole(head(2 | 4 | 128) + S("c") + WILL), [MALFORMED, PROTOCOL_ERROR]),
    # [MQTT5-3.1.2-18] a password that the flags do not announce
    "password-without-flag": (whole(head(2 | 128) + S("c") + S("user") + S("pw")), [MALFORMED, PROTOCOL_ERROR]),
    # [MQTT5-3.1.2-19] the flags announce a password that is not there
    "password-absent": (whole(head(2 | 64) + S("c")), [MALFORMED, PROTOCOL_ERROR]),
    "password-absent-after-user": (whole(head(2 | 64 | 128) + S("c") + S("user")), [MALFORMED, PROTOCOL_ERROR]),
    # [MQTT5-3.1.3-3] the client id is mandatory
    "client-id-absent": (whole(head(2)), [MALFORMED]),
    "client-id-short": (whole(head(2) + b"\x00\x05abcd"), [MALFORMED]),
    # [MQTT5-2.2.2-1] so is the property length
    "properties-absent": (whole(head(2, b"") + S("clnt")), [MALFORMED, PROTOCOL_ERROR]),
    "properties-past-the-end": (whole(head(2, b"\x20") + S("c")), [MALFORMED]),
    "properties-of-five-length-bytes": (whole(head(2, b"\x80\x80\x80\x80\x00") + S("c")), [MALFORMED]),
    # [MQTT5-2.1.3-1] the flags of the fixed header are 0
    "header-flags": (with_flags(wire.connect(V5, "c"), 1), [MALFORMED]),
    "surplus-byte": (longer(wire.connect(V5, "c"), b"\x00"), [MALFORMED, PROTOCOL_ERROR]),
}


@pytest.mark.parametrize("what", BAD_CONNECTS)
def test_bad_connect(dial, what):
    """A CONNECT that does not match section 3.1 ends the connection; a CONNACK with a code may
    come first. What follows it is ignored. [MQTT5-3.1.4-1] [MQTT5-4.13.1-1] [MQTT5-4.13.2-1]"""
    client = dial()
    data, reasons = BAD_CONNECTS[what]
    client.send(data, wire.pingreq())
    expect_refused(client, *reasons)


def test_connect_cut_anywhere(dial):
    """A CONNECT that ends before its last field, wherever, is malformed.
    [MQTT5-3.1.4-1] [MQTT5-3.1.2-9] [MQTT5-3.1.2-17] [MQTT5-3.1.2-19]"""
    size = len(body_of(FULL))
    client = dial()
    client.send(FULL)
    assert client.expect(CONNACK).reason == SUCCESS     # uncut it is sound
    for n in range(size):
        client = dial()
        client.send(cut(FULL, n), wire.pingreq())
        if n < 7:       # the version of the protocol is still unknown
            assert rest(client) in (b"", b"\x20\x03\x00\x81\x00", b"\x20\x03\x00\x84\x00")
        else:
            expect_refused(client, MALFORMED)


def password_file(broker, user, password):
    salt = b"0123456789ab"
    key = hashlib.pbkdf2_hmac("sha512", password, salt, 101)
    with open(broker.path("passwords"), "w") as f:
        f.write(f"{user}:$7$101${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}\n")


@pytest.fixture
def guarded(new_broker):
    """A broker that knows one user, "user", and admits nobody else."""
    broker = new_broker("password_file {dir}/passwords",
                        config="listener {port} 127.0.0.1\nallow_anonymous false\n", start=False)
    password_file(broker, "user", b"sec\x00\xffret")
    return broker.start()


def test_payload_order(connect, dial, guarded, topic):
    """The payload is client id, will properties, will topic, will payload, user name, password, in
    this order; each is taken for what it is. The password is any bytes. [MQTT5-3.1.3-1]"""
    watcher = connect(broker=guarded, username="user", password=b"sec\x00\xffret")
    watcher.subscribe(topic + "/will")
    client = dial(guarded)
    client.send(whole(head(2 | 4 | 64 | 128) + S("the-id") + wire.properties({"content_type": "ct"})
                      + S(topic + "/will") + S("will payload") + S("user") + S(b"sec\x00\xffret")))
    assert client.expect(CONNACK).reason == SUCCESS
    again = connect("the-id", broker=guarded, username="user", password=b"sec\x00\xffret")
    client.expect_disconnect(TAKEN_OVER)
    p = watcher.expect_publish(topic + "/will", "will payload")
    assert p.properties == [("content_type", "ct")]
    again.nothing()


def test_password_without_user_name(dial, cid):
    """A password without a user name is well formed in 5.0. [MQTT5-3.1.2-19]"""
    client = dial()
    client.send(wire.connect(V5, cid, password=b"pw"))
    assert client.expect(CONNACK).reason in (SUCCESS, BAD_CREDENTIALS, NOT_AUTHORIZED)


# 3.1.2.11, 3.1.3.2: properties

@pytest.mark.parametrize("type", [CONNECT, 0], ids=["connect", "will"])
def test_bad_properties(dial, type):
    """A property that comes twice is a protocol error; one that is unknown, does not belong into
    CONNECT or the Will, or is cut short makes the packet malformed.
    [MQTT5-3.1.4-1] [MQTT5-4.13.1-1]"""
    for what, props, reasons in bad_properties(type):
        client = dial()
        client.send(with_properties(type, props))
        try:
            expect_refused(client, *reasons)
        except AssertionError as e:
            raise AssertionError(f"{what}: {e}") from None


@pytest.mark.parametrize("name, value, reasons", [
    ("receive_maximum", 0, [PROTOCOL_ERROR]),
    ("maximum_packet_size", 0, [PROTOCOL_ERROR]),
    ("request_problem_information", 2, [PROTOCOL_ERROR]),
    ("request_response_information", 2, [PROTOCOL_ERROR]),
    ("request_response_information", 255, [PROTOCOL_ERROR]),
    ("authentication_data", b"x", [PROTOCOL_ERROR]),    # without a method
    ("user_property", ("\0", "v"), [MALFORMED]),
    ("user_property", ("k", "\0"), [MALFORMED]),
])
def test_bad_property_value(dial, cid, name, value, reasons):
    """Values outside the range that section 3.1.2.11 gives. [MQTT5-3.1.4-1] [MQTT5-1.5.7-1]"""
    client = dial()
    client.send(wire.connect(V5, cid, properties={name: value}))
    expect_refused(client, *reasons)


@pytest.mark.parametrize("name, value, reasons", [
    ("payload_format_indicator", 2, [MALFORMED, PROTOCOL_ERROR]),
    ("response_topic", "a/+", [MALFORMED, PROTOCOL_ERROR, TOPIC_INVALID]),
    ("response_topic", "#", [MALFORMED, PROTOCOL_ERROR, TOPIC_INVALID]),
    ("user_property", ("a\0", "v"), [MALFORMED]),
])
def test_bad_will_property_value(dial, cid, name, value, reasons):
    """[MQTT5-3.1.4-1] [MQTT5-3.3.2-14] [MQTT5-1.5.7-1]"""
    client = dial()
    client.send(wire.connect(V5, cid, will=Will("t", "x", properties={name: value})))
    expect_refused(client, *reasons)


@pytest.mark.parametrize("will_topic", ["", "a/+", "#", "a#", "a/+/b"])
def test_bad_will_topic(dial, cid, will_topic):
    """A Will Topic is a topic name: not empty, no wildcards. [MQTT5-4.7.0-1] [MQTT5-4.7.3-1]"""
    client = dial()
    client.send(wire.connect(V5, cid, will=Will(will_topic, "x")))
    expect_refused(client, MALFORMED, PROTOCOL_ERROR, TOPIC_INVALID)


def test_properties_are_accepted(connect):
    """Every property of CONNECT, with the extremes of its range; User Property any number of times."""
    for props in [
        {"session_expiry_interval": 0}, {"session_expiry_interval": 0xFFFFFFFF},
        {"receive_maximum": 1}, {"receive_maximum": 65535},
        {"maximum_packet_size": 1000}, {"maximum_packet_size": 0xFFFFFFFF},
        {"topic_alias_maximum": 0}, {"topic_alias_maximum": 65535},
        {"request_response_information": 0}, {"request_response_information": 1},
        {"request_problem_information": 0}, {"request_problem_information": 1},
        [("user_property", ("", "")), ("user_property", ("k", "v")), ("user_property", ("k", "v"))],
        [(name, VALUES[name]) for name in sorted(CLIENT_PROPERTIES[CONNECT])
         if not name.startswith("authentication")],
    ]:
        connect(properties=props).nothing()


# 3.1.3.1: the client id

def test_client_ids_that_every_server_accepts(connect):
    """1 to 23 bytes of 0-9, a-z and A-Z. An id that was given is not assigned. [MQTT5-3.1.3-5]"""
    for i in ["0", "Z", "abcdefghijklmnopqrstuvw", "xyzABCDEFGHIJKLMNOPQRST", "UVWXYZ0123456789"]:
        client = connect(i)
        assert client.connack.prop("assigned_client_identifier") is None


def test_assigned_client_id(connect, topic):
    """An empty client id: the server assigns one that nobody has, connected or not, reports it in
    the CONNACK and proceeds as if the client had sent it.
    [MQTT5-3.1.3-6] [MQTT5-3.1.3-7] [MQTT5-3.2.2-16]"""
    kept = connect("", clean=False, properties=LASTING)
    first = kept.connack.prop("assigned_client_identifier")
    kept.subscribe(topic, qos=1)
    kept.disconnect()

    names = {first}
    for clean in (True, False):
        for _ in range(5):
            client = connect("", clean=clean)
            assert not client.connack.session_present
            names.add(client.connack.prop("assigned_client_identifier"))
    assert len(names) == 11 and None not in names and "" not in names

    taken(connect().publish(topic, "kept", qos=1))
    again = connect(first, clean=False)
    assert again.connack.session_present
    assert again.connack.prop("assigned_client_identifier") is None
    again.expect_publish(topic, "kept", qos=1)


def test_empty_client_id_refused(new_broker, dial):
    """A server that does not permit an empty client id: CONNACK 0x85 and the end.
    [MQTT5-3.1.3-8]"""
    broker = new_broker("allow_zero_length_clientid false")
    for clean in (True, False):
        client = dial(broker)
        client.send(wire.connect(V5, "", clean))
        expect_refused(client, BAD_CLIENT_ID)


# 3.1.4, 3.2: the answer

def test_connack(connect, cid):
    """The accepted CONNECT is answered with code 0x00, Session Present 0 and properties that are
    within their range. Nothing is sent that was not asked for.
    [MQTT5-3.1.4-5] [MQTT5-3.2.2-1] [MQTT5-3.2.2-2] [MQTT5-3.1.2-28] [MQTT5-4.12.0-6]"""
    p = connect(cid).connack
    assert p.reason == SUCCESS and not p.session_present
    assert p.prop("response_information") is None
    assert p.prop("authentication_method") is None
    assert p.prop("authentication_data") is None
    assert p.prop("receive_maximum", 65535) > 0
    assert p.prop("maximum_packet_size", 1) > 0
    assert p.prop("maximum_qos") is None            # 2 is never written down
    assert p.prop("session_expiry_interval", 0) == 0
    assert p.prop("server_keep_alive", 60) == 60    # no maximum is configured
    for name in ("retain_available", "wildcard_subscription_available",
                 "subscription_identifier_available", "shared_subscription_available"):
        assert p.prop(name, 1) == 1
    p = connect(properties={"request_response_information": 0}).connack
    assert p.prop("response_information") is None   # [MQTT5-3.1.2-28]


def test_session_present(connect, cid):
    """Session Present is 1 exactly when there is a session and Clean Start is 0, even if nothing is
    in it. [MQTT5-3.2.2-2] [MQTT5-3.2.2-3]"""
    assert not connect(cid, clean=False, properties=LASTING).connack.session_present
    connect(cid, clean=False, properties=LASTING).disconnect()
    again = connect(cid, clean=False, properties=LASTING)
    assert again.connack.session_present and again.connack.reason == SUCCESS
    again.disconnect()
    anew = connect(cid, clean=True)
    assert not anew.connack.session_present and anew.connack.reason == SUCCESS


def test_pipelined_packets(dial, cid, topic):
    """A client may send packets before it has the CONNACK. They are answered after it, in order.
    [MQTT5-3.2.0-1] [MQTT5-3.2.0-2] [MQTT5-3.12.4-1]"""
    client = dial()
    client.send(wire.connect(V5, cid), wire.subscribe(V5, 9, [(topic, 0)]),
                wire.publish(V5, topic, "early"), wire.pingreq())
    assert client.expect(CONNACK).reason == SUCCESS
    client.expect(SUBACK, pid=9, reasons=[0])
    client.expect_publish(topic, "early", qos=0)
    client.expect(PINGRESP)
    client.nothing()


def test_byte_by_byte(dial, cid, topic):
    """A stream has no borders: packets may arrive in any pieces. [MQTT5-4.2.0-1]"""
    client = dial()
    stream = (wire.connect(V5, cid, properties={"user_property": ("k", "v")}, will=Will("w", "x"))
              + wire.subscribe(V5, 1, [(topic, 1)], {"subscription_identifier": 1000})
              + wire.publish(V5, topic, b"p" * 150, 1, pid=2, properties={"content_type": "ct"})
              + wire.pingreq())
    for i in range(len(stream)):
        client.send(stream[i:i + 1])
    client.expect(CONNACK, reason=0)
    client.expect(SUBACK, pid=1, reasons=[1])
    got = [client.receive() for _ in range(3)]
    assert sorted(p.type for p in got) == [PUBLISH, PUBACK, PINGRESP]
    message = next(p for p in got if p.type == PUBLISH)
    assert (message.topic, message.payload) == (topic, b"p" * 150)
    assert sorted(message.properties) == [("content_type", "ct"), ("subscription_identifier", 1000)]


def test_refused_user(connect, dial, guarded, cid, topic):
    """Who does not pass the check of user and password is turned away with 0x86 or 0x87, whatever
    is pipelined behind the CONNECT is ignored, and a session or connection of the same client id
    is not disturbed.
    [MQTT5-3.1.4-2] [MQTT5-3.1.4-6] [MQTT5-3.2.2-6] [MQTT5-3.2.2-7] [MQTT5-3.2.2-8] [MQTT5-3.1.3-2]"""
    good = dict(broker=guarded, username="user", password=b"sec\x00\xffret")
    owner = connect(cid, clean=False, properties=LASTING, **good)
    owner.subscribe(topic, qos=1)
    for credentials in [{}, {"username": "user"}, {"username": "user", "password": b"sec"},
                        {"username": "nobody", "password": b"sec\x00\xffret"}, {"password": b"x"},
                        {"username": "", "password": b""}]:
        client = dial(guarded)
        client.send(wire.connect(V5, cid, True, **credentials), wire.publish(V5, topic, "smuggled", 1, pid=1),
                    wire.pingreq())
        expect_refused(client, BAD_CREDENTIALS, NOT_AUTHORIZED)
    owner.nothing()
    owner.disconnect()
    client = dial(guarded)
    client.send(wire.connect(V5, cid, True))        # would discard the session
    expect_refused(client, BAD_CREDENTIALS, NOT_AUTHORIZED)
    other = connect(**good)
    taken(other.publish(topic, "kept", qos=1))
    owner = connect(cid, clean=False, **good)
    assert owner.connack.session_present
    owner.expect_publish(topic, "kept", qos=1)


# What the server limits

def test_server_without_qos_2(new_broker, connect, dial, topic):
    """max_qos 1: CONNACK says so, SUBSCRIBE with QoS 2 is granted less, a QoS 2 PUBLISH is met
    with DISCONNECT 0x9B, a QoS 2 Will with CONNACK 0x9B.
    [MQTT5-3.2.2-9] [MQTT5-3.2.2-10] [MQTT5-3.2.2-11] [MQTT5-3.2.2-12]"""
    broker = new_broker("max_qos 1")
    client = connect(broker=broker)
    assert client.connack.prop("maximum_qos") == 1
    suback = client.subscribe((topic, 0), (topic + "/1", 1), (topic, 2), check=False)
    assert suback.reasons == [0, 1, 1]
    client.publish(topic, "fine", qos=1)
    client.expect_publish(topic, "fine", qos=1)
    client.publish(topic, "too much", qos=2, flow=False)
    client.expect_disconnect(QOS_UNSUPPORTED)

    willing = dial(broker)
    willing.send(wire.connect(V5, "willing", will=Will(topic, "x", qos=2)))
    expect_refused(willing, QOS_UNSUPPORTED)
    connect(broker=broker, will=Will(topic, "x", qos=1)).disconnect()

    lowest = new_broker("max_qos 0")
    client = connect(broker=lowest)
    assert client.connack.prop("maximum_qos") == 0
    assert client.subscribe((topic, 0), (topic, 1), (topic, 2), check=False).reasons == [0, 0, 0]
    client.publish(topic, "too much", qos=1, flow=False)
    client.expect_disconnect(QOS_UNSUPPORTED)


def test_server_without_retain(new_broker, connect, dial, topic):
    """retain_available false: CONNACK says so, a PUBLISH with RETAIN is met with DISCONNECT 0x9A,
    a retained Will with CONNACK 0x9A. [MQTT5-3.2.2-13] [MQTT5-3.2.2-14]"""
    broker = new_broker("retain_available false")
    client = connect(broker=broker)
    assert client.connack.prop("retain_available") == 0
    taken(client.publish(topic, "fine", qos=1))
    client.publish(topic, "x", qos=1, retain=True, flow=False)
    client.expect_disconnect(RETAIN_UNSUPPORTED)

    willing = dial(broker)
    willing.send(wire.connect(V5, "willing", will=Will(topic, "x", retain=True)))
    expect_refused(willing, RETAIN_UNSUPPORTED)


def test_shutdown(new_broker, connect):
    """A server that stops says so, or just closes. [MQTT5-3.14.4-2]"""
    broker = new_broker()
    client = connect(broker=broker)
    broker.stop()
    expect_end(client, SHUTTING_DOWN)


# 3.1.2.10: keep alive

def test_keep_alive(connect, topic):
    """Nothing received for one and a half times the Keep Alive: the server closes as if the network
    had failed, so the Will is due. What the server sends does not count, any packet from the
    client does, and 0 turns it off. No Server Keep Alive: the client's value holds.
    [MQTT5-3.1.2-22] [MQTT5-3.2.2-22] [MQTT5-3.1.2-8]"""
    watcher = connect(keepalive=0)
    watcher.subscribe(topic + "/will")
    start = time.monotonic()
    silent = connect(keepalive=1, will=Will(topic + "/will", "silent"))
    spoken_to = connect(keepalive=1)
    spoken_to.subscribe(topic + "/feed")
    lively = connect(keepalive=1)
    assert silent.connack.prop("server_keep_alive", 1) == 1
    while not select.select([silent.sock], [], [], 0.3)[0]:
        lively.publish(topic + "/feed", "x")
        assert time.monotonic() < start + 5, "not closed in time"
    assert 1.4 < time.monotonic() - start < 4
    silent.expect_disconnect(KEEP_ALIVE_TIMEOUT)
    watcher.expect_publish(topic + "/will", "silent")
    lively.nothing()
    last = spoken_to.receive()
    while last.type == PUBLISH:
        last = spoken_to.receive()
        lively.publish(topic + "/feed", "x")
    assert last.type == DISCONNECT and last.reason == KEEP_ALIVE_TIMEOUT
    lively.nothing()
    watcher.nothing()


def test_server_keep_alive(new_broker, connect):
    """The server may set the Keep Alive. Then its value holds instead of the client's.
    [MQTT5-3.1.2-21] [MQTT5-3.2.2-21]"""
    broker = new_broker("max_keepalive 1")
    start = time.monotonic()
    clients = [connect(broker=broker, keepalive=600), connect(broker=broker, keepalive=0)]
    for client in clients:
        assert client.connack.prop("server_keep_alive") == 1
    assert connect(broker=broker, keepalive=1).connack.prop("server_keep_alive", 1) == 1
    for client in clients:
        client.expect_disconnect(KEEP_ALIVE_TIMEOUT)
        assert 1.4 < time.monotonic() - start < 4


# 3.14: DISCONNECT

def ends_with_will(connect, topic, data):
    """Whether the Will of a client that says this last is published, and its connection."""
    watcher = connect()
    watcher.subscribe(topic)
    client = connect(will=Will(topic, "will"))
    client.send(data)
    while True:
        try:
            last = client.receive()
            assert last.type == DISCONNECT, last
        except wire.Closed:
            break
    found = payloads(collect(watcher))
    assert found in ([], [b"will"])
    return bool(found)


@pytest.mark.parametrize("data", [
    b"\xe0\x00", b"\xe0\x01\x00", b"\xe0\x02\x00\x00",
    wire.disconnect(V5, 0, {"reason_string": "bye"}),
    wire.disconnect(V5, 0, [("user_property", ("a", "b")), ("user_property", ("a", "b"))]),
    wire.disconnect(V5, 0, {"session_expiry_interval": 0})])
def test_normal_disconnect(connect, topic, data):
    """DISCONNECT with code 0x00, written or left out: the Will is thrown away unpublished.
    [MQTT5-3.14.4-3] [MQTT5-3.1.2-10] [MQTT5-3.1.2-8]"""
    assert not ends_with_will(connect, topic, data)


@pytest.mark.parametrize("reason", [0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99])
def test_disconnect_with_will(connect, topic, reason):
    """Any other code keeps the Will due. [MQTT5-3.14.4-3] [MQTT5-3.1.2-8]"""
    assert ends_with_will(connect, topic, wire.disconnect(V5, reason))


@pytest.mark.parametrize("reason", [0x01, 0x10, 0x18, 0x7F, 0x85, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x9C, 0xA0, 0xFF])
def test_disconnect_with_foreign_code(connect, topic, reason):
    """A code that is not listed, or that only a server may use, is a protocol error; such a packet
    does not take the Will away. [MQTT5-3.14.2-1]"""
    client = connect()
    client.send(wire.disconnect(V5, reason))
    expect_end(client, MALFORMED, PROTOCOL_ERROR)
    assert ends_with_will(connect, topic, wire.disconnect(V5, reason))


@pytest.mark.parametrize("flags", range(1, 16))
def test_disconnect_with_flags(connect, topic, flags):
    """Flags in the header of DISCONNECT: malformed, and no normal end either. [MQTT5-3.14.1-1]"""
    client = connect()
    client.send(with_flags(wire.disconnect(V5), flags))
    client.expect_disconnect(MALFORMED)
    if flags < 3:
        assert ends_with_will(connect, topic, with_flags(wire.disconnect(V5), flags))


def test_disconnect_with_bad_properties(connect, topic):
    """A DISCONNECT with unsound properties is an error and no normal end, so the Will stays due.
    [MQTT5-4.13.1-1]"""
    watcher = connect()
    watcher.subscribe(topic)
    cases = list(bad_properties(DISCONNECT)) + [
        ("session expiry from 0 to more", {"session_expiry_interval": 1}, [PROTOCOL_ERROR]),
        ("bad UTF-8", {"reason_string": b"\xff"}, [MALFORMED]),
        ("U+0000", {"user_property": ("a", "\0")}, [MALFORMED])]
    for what, props, reasons in cases:
        client = connect(will=Will(topic, what))
        client.send(wire.disconnect(V5, 0, props))
        try:
            expect_end(client, *reasons)
            watcher.expect_publish(topic, what)
        except AssertionError as e:
            raise AssertionError(f"{what}: {e}") from None
    for data in [b"\xe0\x03\x00\x00\x00", b"\xe0\x02\x00\x05", b"\xe0\x03\x00\x03\x1f"]:
        client = connect(will=Will(topic, data))
        client.send(data)
        expect_end(client, MALFORMED, PROTOCOL_ERROR)
        watcher.expect_publish(topic, data)


def test_nothing_after_disconnect(connect, topic):
    """What follows a client's DISCONNECT is not processed; the server sends nothing and closes.
    [MQTT5-3.14.4-1] [MQTT5-3.14.4-2]"""
    watcher = connect()
    watcher.subscribe(topic)
    client = connect()
    client.send(wire.disconnect(V5), wire.publish(V5, topic, "late"), wire.pingreq())
    client.expect_closed()
    watcher.nothing()


def test_nothing_after_error(connect, topic):
    """After its own DISCONNECT the server sends nothing more and reads nothing more.
    [MQTT5-3.14.4-1] [MQTT5-3.14.4-2] [MQTT5-4.13.2-1]"""
    watcher = connect()
    watcher.subscribe(topic)
    client = connect()
    client.send(wire.subscribe(V5, 1, []), wire.publish(V5, topic, "late", 1, pid=2), wire.pingreq())
    client.expect_disconnect(PROTOCOL_ERROR)
    watcher.nothing()


# 3.15, 4.12: AUTH. Extended authentication is an offer that this server does not make.

@pytest.mark.parametrize("props", [
    {"authentication_method": "SCRAM-SHA-256"}, {"authentication_method": ""},
    {"authentication_method": "x", "authentication_data": b"data"}])
@pytest.mark.parametrize("behind", [b"", wire.auth(CONTINUE, {"authentication_method": "x"}),
                                    wire.auth(SUCCESS, {"authentication_method": "other"}),
                                    wire.publish(V5, "t", "x", 1, pid=1), wire.pingreq(), wire.disconnect(V5)],
                         ids=["alone", "AUTH", "AUTH-wrong", "PUBLISH", "PINGREQ", "DISCONNECT"])
def test_authentication_method(dial, cid, props, behind):
    """A server that does not support the Authentication Method refuses with 0x8C (or 0x87), without
    any AUTH of its own. Whatever comes from the client meanwhile does not help it.
    [MQTT5-4.12.0-1] [MQTT5-4.12.0-2] [MQTT5-4.12.0-3] [MQTT5-4.12.0-4] [MQTT5-3.1.2-30]"""
    client = dial()
    client.send(wire.connect(V5, cid, properties=props), behind)
    expect_refused(client, BAD_METHOD, NOT_AUTHORIZED)


@pytest.mark.parametrize("packet", [
    b"\xf0\x00", b"\xf0\x01\x18", wire.auth(CONTINUE), wire.auth(REAUTHENTICATE), wire.auth(SUCCESS),
    wire.auth(CONTINUE, {"reason_string": "why"}), wire.auth(0x01), wire.auth(0x80)],
    ids=["empty", "code-alone", "0x18", "0x19", "0x00", "reason-string", "0x01", "0x80"])
def test_auth_without_method(connect, packet):
    """AUTH on a connection whose CONNECT named no method is a protocol error, as is one without a
    method or with a code that a client does not have. [MQTT5-4.12.0-7] [MQTT5-3.15.2-1]"""
    client = connect()
    client.send(packet)
    client.expect_disconnect(PROTOCOL_ERROR)


@pytest.mark.parametrize("reason", [CONTINUE, REAUTHENTICATE])
def test_auth_with_foreign_method(connect, reason):
    """A method that CONNECT did not name, also to authenticate again.
    [MQTT5-4.12.0-5] [MQTT5-4.12.0-7] [MQTT5-4.12.1-1] [MQTT5-4.12.1-2]"""
    client = connect()
    client.send(wire.auth(reason, {"authentication_method": "x", "authentication_data": b"y"}))
    client.expect_disconnect(PROTOCOL_ERROR, BAD_METHOD, NOT_AUTHORIZED)


@pytest.mark.parametrize("flags", [1, 2, 4, 8, 15])
def test_auth_with_flags(connect, flags):
    """[MQTT5-3.15.1-1]"""
    client = connect()
    client.send(with_flags(wire.auth(CONTINUE, {"authentication_method": "x"}), flags))
    client.expect_disconnect(MALFORMED)
