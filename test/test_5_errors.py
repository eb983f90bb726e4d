"""MQTT 5.0: packets that are not as they should be, and how the server says so.

Data representation (1.5), fixed header (2.1), properties (2.2.2), handling errors (4.13), Maximum Packet
Size, Reason Strings within limits."""

import socket

import pytest

import wire
from v5 import *
from v5 import connect, dial
from wire import V5, Will


def failing(connect, data, *reasons):
    """The connection that sends this is ended with one of these codes; nothing behind it is read."""
    client = connect()
    client.send(data, wire.pingreq())
    return client.expect_disconnect(*reasons)


# 1.5: strings and numbers

def places(text):
    """Every string that a client can send after CONNECT, with this text in it."""
    def properties(name):
        return {name: text}

    pairs = [("user_property", (text, "v"))], [("user_property", ("k", text))]
    yield "topic", wire.publish(V5, text, "x")                                  # [MQTT5-3.3.2-1]
    yield "topic-alias", wire.publish(V5, text, "x", properties={"topic_alias": 1})
    yield "response-topic", wire.publish(V5, "t", "x", properties=properties("response_topic"))  # [MQTT5-3.3.2-13]
    yield "content-type", wire.publish(V5, "t", "x", properties=properties("content_type"))     # [MQTT5-3.3.2-19]
    yield "subscribe", wire.subscribe(V5, 1, [(text, 0)])                       # [MQTT5-3.8.3-1]
    yield "subscribe-2", wire.subscribe(V5, 1, [("a", 0), (text, 0)])
    yield "shared", wire.subscribe(V5, 1, [(b"$share/g/" + text, 0)])
    yield "unsubscribe", wire.unsubscribe(V5, 1, ["a", text])                   # [MQTT5-3.10.3-1]
    for type in (PUBACK, PUBREC, PUBREL, PUBCOMP):
        yield wire.NAMES[type], with_properties(type, properties("reason_string"))
    for props in pairs:                                                         # [MQTT5-1.5.7-1]
        for type in (PUBLISH, SUBSCRIBE, UNSUBSCRIBE, PUBREL):
            yield f"user-property-{wire.NAMES[type]}", with_properties(type, props)


@pytest.mark.parametrize("text", BAD_STRINGS, ids=lambda text: text.hex())
def test_bad_strings(connect, text):
    """A string that is not UTF-8, has a surrogate or U+0000 makes its packet malformed, wherever it
    stands. [MQTT5-1.5.4-1] [MQTT5-1.5.4-2] [MQTT5-1.5.7-1] [MQTT5-4.7.3-2]
    [MQTT5-3.3.2-1] [MQTT5-3.3.2-13] [MQTT5-3.3.2-19] [MQTT5-3.8.3-1] [MQTT5-3.10.3-1]"""
    for where, data in places(text):
        try:
            failing(connect, data, MALFORMED)
        except AssertionError as e:
            raise AssertionError(f"{where}: {e}") from None


@pytest.mark.parametrize("text", BAD_STRINGS, ids=lambda text: text.hex())
def test_bad_strings_in_connect(dial, cid, text):
    """The same in the strings of CONNECT: optional CONNACK 0x81, and the end.
    [MQTT5-1.5.4-1] [MQTT5-1.5.4-2] [MQTT5-1.5.7-1] [MQTT5-3.1.3-4] [MQTT5-3.1.3-11] [MQTT5-3.1.3-12]"""
    for where, fields in [
        ("client id", dict(client_id=text)),                                    # [MQTT5-3.1.3-4]
        ("will topic", dict(will=Will(text, "x"))),                             # [MQTT5-3.1.3-11]
        ("user name", dict(username=text)),                                     # [MQTT5-3.1.3-12]
        ("user property", dict(properties={"user_property": (text, "v")})),
        ("user property", dict(properties={"user_property": ("k", text)})),
        ("will user property", dict(will=Will("t", "x", properties={"user_property": ("k", text)}))),
        ("will response topic", dict(will=Will("t", "x", properties={"response_topic": text}))),
        ("will content type", dict(will=Will("t", "x", properties={"content_type": text}))),
    ]:
        client = dial()
        client.send(wire.connect(V5, **{"client_id": cid, **fields}), wire.pingreq())
        try:
            expect_refused(client, MALFORMED)
        except AssertionError as e:
            raise AssertionError(f"{where}: {e}") from None


def test_bytes_that_are_no_strings(connect, topic):
    """Payload, correlation data, will payload and password are any bytes. [MQTT5-1.5.4-1]"""
    sub = connect(username="u", password=b"\xff\x00")
    sub.subscribe(topic)
    for data in BAD_STRINGS:
        sub.publish(topic, data, properties={"correlation_data": data})
        assert sub.expect_publish(topic, data).prop("correlation_data") == data
        connect(will=Will(topic, data, properties={"correlation_data": data})).close()
        assert sub.expect_publish(topic, data).prop("correlation_data") == data


def test_good_strings(connect, topic):
    """Everything else is a string, U+FEFF too, and is passed on as it is.
    [MQTT5-1.5.4-3] [MQTT5-1.5.7-1] [MQTT5-3.3.2-17]"""
    client = connect()
    for text in ["\ufeff", "\ufeffa", "a\ufeffb", "\u00a0", "\u00e9", "\u07ff", "\u0800", "\ud7ff", "\ue000",
                 "\ufffd", "\U00010000", "\U0001f600", "\U0010fffd", ""]:
        name = f"{topic}/{text}"
        client.subscribe(name)
        props = {"content_type": text, "user_property": (text, text)}
        client.publish(name, text, properties=props)
        p = client.expect_publish(name, text)
        assert dict(p.properties) == props
    connect("\ufeff" + topic, username="\ufeff").nothing()
    connect(topic).nothing()
    connect("\ufeff" + topic, clean=False).nothing()


@pytest.mark.parametrize("text", ["\u0001", "a\u001fb", "\u007f", "\u0080", "\u009f", "\ufdd0", "\ufffe", "\uffff",
                                  "\U0001ffff", "\U0010ffff"], ids=lambda text: text.encode().hex())
def test_strings_that_may_be_refused(connect, topic, text):
    """Control characters and non-characters are malformed, or are passed on as they are. [MQTT5-1.5.4-1]"""
    client = connect()
    name, props = f"{topic}/{text}", {"content_type": text, "user_property": (text, text)}
    client.subscribe(topic + "/#")
    client.send(wire.publish(V5, name, text, properties=props), wire.pingreq())
    p = client.receive()
    if p.type == DISCONNECT:
        assert p.reason == MALFORMED
        client.expect_closed()
    else:
        assert (p.type, p.topic, p.payload) == (PUBLISH, name, text.encode())
        assert dict(p.properties) == props


def test_lengths_in_five_bytes(connect):
    """A variable byte integer has at most four bytes. [MQTT5-1.5.5-1]"""
    failing(connect, b"\xc0\x80\x80\x80\x80\x00", MALFORMED)
    failing(connect, b"\x30\xff\xff\xff\xff\x01", MALFORMED)
    failing(connect, b"\x30\xff\xff\xff\xff", MALFORMED)
    failing(connect, wire.packet(PUBLISH, 0, b"\x00\x01t\x80\x80\x80\x80\x00x"), MALFORMED)
    failing(connect, wire.packet(SUBSCRIBE, 2, b"\x00\x01\x80\x80\x80\x80\x00\x00\x01t\x00"), MALFORMED)
    failing(connect, wire.subscribe(V5, 1, [("t", 0)], b"\x0b\x80\x80\x80\x80\x01"), MALFORMED)


def test_lengths_with_padding(connect, topic):
    """A variable byte integer is written in the fewest bytes; another form is malformed, or is read as
    what it says. [MQTT5-1.5.5-1]"""
    padded = [b"\xc0\x80\x00",
              wire.packet(PUBLISH, 0, wire.string(topic) + b"\x80\x00" + b"x"),
              wire.packet(SUBSCRIBE, 2, b"\x00\x01\x80\x80\x00" + wire.string(topic) + b"\x00"),
              wire.subscribe(V5, 1, [(topic, 0)], b"\x0b\x81\x00")]
    for data in padded:
        client = connect()
        client.send(data, wire.pingreq())
        p = client.receive()
        if p.type == DISCONNECT:
            assert p.reason == MALFORMED
            client.expect_closed()
        else:
            assert p.type in (PINGRESP, SUBACK)
            client.expect(PINGRESP)


# 2.1: fixed header

SOUND = {
    PUBACK: wire.ack(V5, PUBACK, 1), PUBREC: wire.ack(V5, PUBREC, 1), PUBREL: wire.ack(V5, PUBREL, 1),
    PUBCOMP: wire.ack(V5, PUBCOMP, 1), SUBSCRIBE: wire.subscribe(V5, 1, [("t", 0)]),
    UNSUBSCRIBE: wire.unsubscribe(V5, 1, ["t"]), wire.PINGREQ: wire.pingreq(), DISCONNECT: wire.disconnect(V5),
}


@pytest.mark.parametrize("type", SOUND, ids=lambda type: wire.NAMES[type])
def test_header_flags(connect, type):
    """The flags of every packet but PUBLISH are fixed; others are malformed.
    [MQTT5-2.1.3-1] [MQTT5-3.6.1-1] [MQTT5-3.8.1-1] [MQTT5-3.10.1-1] [MQTT5-3.14.1-1]"""
    right = SOUND[type][0] & 15
    assert right == (2 if type in (PUBREL, SUBSCRIBE, UNSUBSCRIBE) else 0)
    for flags in set(range(16)) - {right}:
        failing(connect, with_flags(SOUND[type], flags), MALFORMED)


@pytest.mark.parametrize("data", [
    b"\x00\x00", b"\x00\x02\x00\x00", b"\x0f\x00", b"\x20\x03\x00\x00\x00", b"\x90\x04\x00\x01\x00\x00",
    b"\xb0\x04\x00\x01\x00\x00", b"\xd0\x00"],
    ids=["0", "0-with-body", "0-with-flags", "CONNACK", "SUBACK", "UNSUBACK", "PINGRESP"])
def test_packets_that_no_client_sends(connect, data):
    """[MQTT5-4.13.1-1] Type 0 is forbidden, and some types only a server sends."""
    failing(connect, data, MALFORMED, PROTOCOL_ERROR)


@pytest.mark.parametrize("flags", [0x06, 0x07, 0x0E, 0x0F])
def test_qos_3(connect, flags):
    """[MQTT5-3.3.1-4]"""
    failing(connect, with_flags(wire.publish(V5, "t", "x", 1, pid=1), flags), MALFORMED)


def test_dup_with_qos_0(connect, topic):
    """DUP must be 0 on QoS 0: refused, or ignored and not passed on. [MQTT5-3.3.1-2]"""
    sub, pub = connect(), connect()
    sub.subscribe(topic)
    pub.publish(topic, "x", qos=0, dup=True)
    pub.send(wire.pingreq())
    p = pub.receive()
    if p.type == DISCONNECT:
        assert p.reason in (MALFORMED, PROTOCOL_ERROR)
        sub.nothing()
    else:
        assert p.type == PINGRESP
        sub.expect_publish(topic, "x", dup=False)


# Packets that end early or late

def test_cut_anywhere(connect):
    """A packet whose fields run past its end, wherever it is cut, is malformed. Some pieces are sound
    packets of another kind; those are left out. [MQTT5-4.13.1-1] [MQTT5-2.2.2-1]"""
    props = [("user_property", ("k", "v"))]
    publish = wire.publish(V5, "topic", b"", 1, pid=1, properties=props + [("content_type", "t")])
    subscribe = wire.subscribe(V5, 1, [("ab", 0), ("cd", 1)], props)
    unsubscribe = wire.unsubscribe(V5, 1, ["ab", "cd"], props)
    for data, whole in [(publish, set()), (subscribe, {len(body_of(wire.subscribe(V5, 1, [("ab", 0)], props)))}),
                        (unsubscribe, {len(body_of(wire.unsubscribe(V5, 1, ["ab"], props)))})]:
        for n in set(range(len(body_of(data)))) - whole:
            bare = n == 3 + len(wire.properties(props)) - 1     # id and properties, but no filter
            codes = (MALFORMED, PROTOCOL_ERROR) if bare else (MALFORMED,)
            failing(connect, cut(data, n), *codes)
    for type in (PUBACK, PUBREC, PUBREL, PUBCOMP):
        data = wire.ack(V5, type, 1, 0, props)
        for n in set(range(len(body_of(data)))) - {2, 3}:       # the short forms
            failing(connect, cut(data, n), MALFORMED)


@pytest.mark.parametrize("data", [
    longer(wire.ack(V5, PUBACK, 1, 0, {}), b"\x00"), longer(wire.ack(V5, PUBREC, 1, 0, {}), b"\x00"),
    longer(wire.ack(V5, PUBREL, 1, 0, {}), b"\x00"), longer(wire.ack(V5, PUBCOMP, 1, 0, {}), b"\x00"),
    longer(wire.subscribe(V5, 1, [("t", 0)]), b"\x00"), longer(wire.subscribe(V5, 1, [("t", 0)]), b"\x00\x01"),
    longer(wire.subscribe(V5, 1, [("t", 0)]), b"\x00\x01t"), longer(wire.unsubscribe(V5, 1, ["t"]), b"\x00"),
    longer(wire.unsubscribe(V5, 1, ["t"]), b"\x00\x05t"), wire.packet(wire.PINGREQ, 0, b"\x00")],
    ids=["PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE-1", "SUBSCRIBE-2", "SUBSCRIBE-3", "UNSUBSCRIBE-1",
         "UNSUBSCRIBE-2", "PINGREQ"])
def test_surplus_bytes(connect, data):
    """Bytes behind the last field belong to no field. [MQTT5-4.13.1-1]"""
    failing(connect, data, MALFORMED, PROTOCOL_ERROR)


# Properties

@pytest.mark.parametrize("type", [PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, UNSUBSCRIBE],
                         ids=lambda type: wire.NAMES[type])
def test_bad_properties(connect, type):
    """A property twice is a protocol error; one that is unknown, in the wrong packet or cut short makes
    the packet malformed. [MQTT5-4.13.1-1] [MQTT5-3.3.4-6]"""
    for what, props, reasons in bad_properties(type):
        try:
            failing(connect, with_properties(type, props), *reasons)
        except AssertionError as e:
            raise AssertionError(f"{what}: {e}") from None


@pytest.mark.parametrize("type", [PUBLISH, SUBSCRIBE, UNSUBSCRIBE], ids=lambda type: wire.NAMES[type])
def test_good_properties(connect, type):
    """Each property that a packet may have, alone; User Property any number of times."""
    for name in CLIENT_PROPERTIES[type]:
        client = connect()
        client.send(with_properties(type, [(name, VALUES[name])] * (3 if name == "user_property" else 1)))
        client.expect({PUBLISH: PUBACK, SUBSCRIBE: SUBACK, UNSUBSCRIBE: UNSUBACK}[type], pid=1)
        client.nothing()


@pytest.mark.parametrize("data, reasons", [
    (wire.publish(V5, "t", "x", properties={"payload_format_indicator": 2}), [MALFORMED, PROTOCOL_ERROR]),
    (wire.publish(V5, "t", "x", properties={"payload_format_indicator": 255}), [MALFORMED, PROTOCOL_ERROR]),
    (wire.publish(V5, "t", "x", properties={"topic_alias": 0}), [TOPIC_ALIAS_INVALID]),
    (wire.publish(V5, "t", "x", properties={"subscription_identifier": 1}), [PROTOCOL_ERROR]),
    (wire.subscribe(V5, 1, [("t", 0)], {"subscription_identifier": 0}), [PROTOCOL_ERROR]),
], ids=["format-2", "format-255", "alias-0", "id-from-client", "id-0"])
def test_bad_property_values(connect, data, reasons):
    """[MQTT5-3.3.2-8] [MQTT5-3.3.4-6] [MQTT5-4.13.1-1]"""
    failing(connect, data, *reasons)


def test_property_length_too_small(connect):
    """The property length decides where the properties end. [MQTT5-2.2.2-1]"""
    one = wire.prop("content_type", "text")
    failing(connect, wire.packet(PUBLISH, 0, wire.string("t") + wire.varint(len(one) - 2) + one), MALFORMED)
    failing(connect, wire.packet(PUBLISH, 0, wire.string("t") + wire.varint(1) + one), MALFORMED)
    failing(connect, wire.packet(PUBLISH, 0, wire.string("t") + wire.varint(len(one) + 1) + one), MALFORMED)


# PUBLISH, SUBSCRIBE, UNSUBSCRIBE

@pytest.mark.parametrize("data", [
    wire.publish(V5, "t", "x", 1, pid=0), wire.publish(V5, "t", "x", 2, pid=0),
    wire.subscribe(V5, 0, [("t", 0)]), wire.unsubscribe(V5, 0, ["t"]),
    wire.ack(V5, PUBACK, 0), wire.ack(V5, PUBREC, 0), wire.ack(V5, PUBREL, 0), wire.ack(V5, PUBCOMP, 0)],
    ids=["PUBLISH-1", "PUBLISH-2", "SUBSCRIBE", "UNSUBSCRIBE", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP"])
def test_packet_id_0(connect, data):
    """[MQTT5-2.2.1-3]"""
    failing(connect, data, MALFORMED, PROTOCOL_ERROR)


@pytest.mark.parametrize("name", ["#", "+", "a/+", "a/#", "a+b", "#a", "$share/g/+"])
def test_wildcard_in_topic(connect, name):
    """[MQTT5-3.3.2-2] [MQTT5-4.7.0-1]"""
    for qos in (0, 1, 2):
        failing(connect, wire.publish(V5, name, "x", qos, pid=1 if qos else None), MALFORMED, PROTOCOL_ERROR, TOPIC_INVALID)


def test_empty_topic(connect):
    """An empty topic needs an alias. [MQTT5-4.7.3-1] [MQTT5-3.3.2-1]"""
    failing(connect, wire.publish(V5, "", "x"), PROTOCOL_ERROR)
    failing(connect, wire.publish(V5, "", "x", 1, pid=1), PROTOCOL_ERROR)
    failing(connect, wire.publish(V5, "", "x", properties={"topic_alias": 1}), PROTOCOL_ERROR)
    failing(connect, wire.publish(V5, "", "x", 2, True, pid=1), PROTOCOL_ERROR)


def test_no_filter(connect):
    """[MQTT5-3.8.3-2] [MQTT5-3.10.3-2]"""
    failing(connect, wire.subscribe(V5, 1, []), PROTOCOL_ERROR)
    failing(connect, wire.subscribe(V5, 1, [], {"subscription_identifier": 1}), PROTOCOL_ERROR)
    failing(connect, wire.unsubscribe(V5, 1, []), PROTOCOL_ERROR)


@pytest.mark.parametrize("flags, reason", [
    (0x40, MALFORMED), (0x80, MALFORMED), (0xC0, MALFORMED), (0x41, MALFORMED),     # reserved bits
    (0x03, PROTOCOL_ERROR),                                                         # QoS 3
    (0x30, PROTOCOL_ERROR), (0x32, PROTOCOL_ERROR)])                                # Retain Handling 3
def test_subscription_options(connect, flags, reason):
    """[MQTT5-3.8.3-5] The other two are protocol errors by section 3.8.3.1."""
    failing(connect, wire.subscribe(V5, 1, [("t", flags)]), reason)
    failing(connect, wire.subscribe(V5, 1, [("a", 0), ("t", flags), ("b", 0)]), reason)


# Size

def test_packet_too_large(new_broker, connect, dial, topic):
    """A packet larger than the server's Maximum Packet Size, the fixed header included: DISCONNECT 0x95.
    It is known to be too large as soon as its length is. [MQTT5-3.2.2-15]"""
    broker = new_broker("max_packet_size 200")
    sub = connect(broker=broker)
    assert sub.connack.prop("maximum_packet_size") == 200
    sub.subscribe(topic)

    def publish(size):
        empty = wire.publish(V5, topic, bytes(150))
        data = wire.publish(V5, topic, bytes(150 + size - len(empty)))
        assert len(data) == size
        return data

    client = connect(broker=broker)
    client.send(publish(200))
    assert len(sub.expect_publish(topic).raw) == 200
    client.send(publish(201))
    client.expect_disconnect(PACKET_TOO_LARGE)
    for start in (publish(201)[:3], publish(5000)[:3], publish(5000)[:100], b"\x30\xff\xff\xff\x7f",
                  b"\x82\xc6\x01\x00", b"\xc0\xc6\x01"):
        client = connect(broker=broker)
        client.send(start)
        client.expect_disconnect(PACKET_TOO_LARGE)
    client = dial(broker)
    client.send(wire.connect(V5, "c", username="u" * 300))
    expect_refused(client, PACKET_TOO_LARGE)
    sub.nothing()


def test_error_survives_unread_input(connect):
    """The DISCONNECT arrives even if the client has sent more than the server wants to read.
    [MQTT5-4.13.1-1]"""
    client = connect()
    client.send(wire.subscribe(V5, 1, []) + wire.publish(V5, "t", bytes(100)) * 500)
    client.expect_disconnect(PROTOCOL_ERROR)


# What the server may say about it

def talk(client, topic, refused):
    """Gets every kind of answer out of the server, and a DISCONNECT last. The codes of PUBACK and
    PUBREC show whether the server has rules."""
    answers = []

    def ask(type, *data):
        client.send(*data)
        answers.append(client.await_packet(type))
        return answers[-1]

    ask(PUBACK, wire.publish(V5, topic + "/closed", "x", 1, pid=1))
    ask(PUBREC, wire.publish(V5, topic + "/closed", "x", 2, pid=2))
    ask(PUBCOMP, wire.ack(V5, PUBREL, 3))
    ask(SUBACK, wire.subscribe(V5, 4, [(topic + "/elsewhere", 0)]))
    ask(UNSUBACK, wire.unsubscribe(V5, 5, [topic + "/none", topic + "/none"]))
    client.ack(PUBREC, 77)          # may be answered with PUBREL 0x92
    client.send(wire.pingreq())
    while answers[-1].type != PINGRESP:
        answers.append(client.receive())
    assert {p.reason >= 0x80 for p in answers if p.type in (PUBACK, PUBREC)} == {refused}
    assert [p.reason for p in answers if p.type == PUBCOMP] == [ID_NOT_FOUND]
    assert [p.reasons for p in answers if p.type == UNSUBACK] == [[NO_SUBSCRIPTION] * 2]
    client.send(wire.subscribe(V5, 9, []))
    answers.append(client.expect_disconnect(PROTOCOL_ERROR))
    return answers


@pytest.fixture(params=[False, True], ids=["free", "rules"])
def rules(request):
    """Whether the broker has rules, so that it has more to refuse."""
    return request.param


@pytest.fixture
def strict(new_broker, topic, rules):
    if not rules:
        return new_broker()
    broker = new_broker("acl_file {dir}/acl", start=False)
    with open(broker.path("acl"), "w") as f:
        f.write(f"topic readwrite {topic}/open\ntopic read {topic}/#\n")
    return broker.start()


def test_answers_within_the_limit(strict, rules, connect, dial, topic):
    """No packet is larger than the client's Maximum Packet Size: Reason String and User Properties are
    left out of whatever would be.
    [MQTT5-3.1.2-24] [MQTT5-3.2.2-19] [MQTT5-3.2.2-20] [MQTT5-3.4.2-2] [MQTT5-3.4.2-3] [MQTT5-3.5.2-2]
    [MQTT5-3.5.2-3] [MQTT5-3.6.2-2] [MQTT5-3.6.2-3] [MQTT5-3.7.2-2] [MQTT5-3.7.2-3] [MQTT5-3.9.2-1]
    [MQTT5-3.9.2-2] [MQTT5-3.11.2-1] [MQTT5-3.11.2-2] [MQTT5-3.14.2-3] [MQTT5-3.14.2-4] [MQTT5-3.15.2-2]
    [MQTT5-3.15.2-3]"""
    plain = connect(broker=strict).connack
    least = len(plain.raw)
    for limit in (least, least + 5, least + 20, least + 50):
        client = connect(broker=strict, properties={"maximum_packet_size": limit})
        assert len(client.connack.raw) <= limit
        for p in talk(client, topic, rules):
            assert len(p.raw) <= limit, p
    # a refusal, and a CONNACK that cannot be made small enough; with a method even an AUTH would have to fit
    for limit in range(1, least + 1):
        for method in ({}, {"authentication_method": "x"}):
            client = dial(strict)
            client.send(wire.connect(V5, "", properties={"maximum_packet_size": limit, **method}),
                        wire.disconnect(V5))
            assert len(rest(client)) <= limit


def test_suback_beyond_the_limit(connect, topic):
    """A SUBACK or UNSUBACK that is larger than the client takes is not sent. As every request must be
    answered, the connection cannot go on. [MQTT5-3.1.2-24] [MQTT5-3.8.4-1] [MQTT5-3.10.4-4]"""
    filters = [f"{topic}/{i}" for i in range(56)]
    for ask, packet in [(lambda n: wire.subscribe(V5, 1, [(f, 0) for f in filters[:n]]), SUBACK),
                        (lambda n: wire.unsubscribe(V5, 1, filters[:n]), UNSUBACK)]:
        client = connect(properties={"maximum_packet_size": 60})
        client.send(ask(55))
        p = client.expect(packet, pid=1)
        assert len(p.raw) == 60 and len(p.reasons) == 55
        client.send(ask(56))
        p = expect_end(client, UNSPECIFIED, 0x83, PROTOCOL_ERROR, PACKET_TOO_LARGE, QUOTA_EXCEEDED)
        assert p is None or len(p.raw) <= 60


def test_request_problem_information(strict, rules, connect, topic):
    """Request Problem Information 0: no Reason String and no User Property but in CONNACK, DISCONNECT and
    PUBLISH, where the publisher's are passed on. [MQTT5-3.1.2-29]"""
    client = connect(broker=strict, properties={"request_problem_information": 0})
    client.subscribe(topic + "/open")
    props = [("user_property", ("k", "v"))]
    client.publish(topic + "/open", "x", properties=props)
    assert client.expect_publish(topic + "/open", "x").properties == props
    for p in talk(client, topic, rules):
        if p.type != DISCONNECT:
            assert p.properties == [], p


def finish(client):
    """The client will send no more."""
    try:
        client.sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass    # the server was faster


def test_server_survives(connect, dial, topic):
    """After all kinds of noise the server serves others as before. [MQTT5-4.13.1-1]"""
    sub = connect()
    sub.subscribe(topic)
    noise = bytes(range(256)) * 4
    for data in (noise, noise[::-1], b"\x00" * 1000, b"\xff" * 1000, b"\x10" * 1000, b"GET / HTTP/1.1\r\n\r\n",
                 b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
        client = dial()
        client.send(data)
        finish(client)
        assert rest(client) in (b"", b"\x20\x03\x00\x81\x00", b"\x20\x03\x00\x84\x00", b"\x20\x02\x00\x01")
        client = connect()
        client.send(data)
        finish(client)
        rest(client)
    connect().publish(topic, "still here")
    sub.expect_publish(topic, "still here")
