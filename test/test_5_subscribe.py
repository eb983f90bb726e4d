"""MQTT 5.0: SUBSCRIBE, UNSUBSCRIBE and who gets what.

SUBSCRIBE and SUBACK (3.8, 3.9), UNSUBSCRIBE and UNSUBACK (3.10, 3.11), topic filters (4.7), shared
subscriptions (4.8.2), subscription identifiers, retain handling."""

import collections

import pytest

import wire
from v5 import *
from v5 import connect, dial
from wire import V5, V311


# 3.8, 3.9: SUBSCRIBE and SUBACK

@pytest.mark.parametrize("pid", [1, 256, 65535])
def test_suback(connect, topic, pid):
    """Every SUBSCRIBE is answered with a SUBACK of the same id that has one code per filter, in their
    order: the granted QoS.
    [MQTT5-3.8.4-1] [MQTT5-3.8.4-2] [MQTT5-3.8.4-6] [MQTT5-3.8.4-7] [MQTT5-3.9.3-1] [MQTT5-3.9.3-2]
    [MQTT5-2.2.1-6]"""
    client = connect()
    filters = [(topic + "/2", 2), (topic + "/0", 0), (topic + "/1", 1), (topic + "/+", 2), (topic + "/#", 0)]
    client.send(wire.subscribe(V5, pid, filters))
    p = client.expect(SUBACK, pid=pid, reasons=[2, 0, 1, 2, 0])
    assert p.properties == []
    client.nothing()


def test_several_filters(connect, topic):
    """Several filters in one SUBSCRIBE are like several SUBSCRIBEs with one combined SUBACK: each
    brings its retained messages. [MQTT5-3.8.4-5]"""
    pub = connect()
    pub.publish(topic + "/a", "A", qos=1, retain=True)
    pub.publish(topic + "/b", "B", qos=1, retain=True)
    sub = connect()
    sub.subscribe((topic + "/a", 0), (topic + "/b", 1), (topic + "/+", 2))
    got = sorted((p.payload, p.qos, p.retain) for p in collect(sub))
    assert got == [(b"A", 0, True), (b"A", 1, True), (b"B", 1, True), (b"B", 1, True)]
    # the same filter twice: the second replaces the first
    other = connect()
    other.subscribe((topic + "/live", 2), (topic + "/live", 0))
    pub.publish(topic + "/live", "x", qos=2)
    other.expect_publish(topic + "/live", "x", qos=0)
    other.nothing()
    for name in "ab":
        pub.publish(f"{topic}/{name}", retain=True)


def test_delivery_qos(connect, topic):
    """A message is delivered at the lower of its own QoS and the granted one. Every client with a
    matching subscription gets it. [MQTT5-3.8.4-8] [MQTT5-4.5.0-1]"""
    subs = [connect(), connect(), connect()]
    for granted, sub in enumerate(subs):
        sub.subscribe(topic, qos=granted)
    pub = connect()
    for qos in (0, 1, 2):
        pub.publish(topic, f"q{qos}", qos=qos)
        for granted, sub in enumerate(subs):
            sub.expect_publish(topic, f"q{qos}", qos=min(qos, granted))
    for sub in subs:
        sub.nothing()


def test_replacing_a_subscription(connect, topic):
    """The same filter again replaces the subscription with its QoS, options and identifier; there are
    never two. No message is lost meanwhile. [MQTT5-3.8.4-3] [MQTT5-3.8.4-4]"""
    client, pub = connect(), connect()
    client.subscribe((topic, 2), properties={"subscription_identifier": 5})
    client.subscribe((topic, options(0, as_published=True)))
    pub.publish(topic, "x", qos=2, retain=True)
    p = client.expect_publish(topic, "x", qos=0, retain=True)
    assert p.properties == []
    client.nothing()
    client.subscribe((topic, options(1, no_local=True, handling=2)), properties={"subscription_identifier": 6})
    pub.publish(topic, "y", qos=2, retain=True)
    p = client.expect_publish(topic, "y", qos=1, retain=False)
    assert p.properties == [("subscription_identifier", 6)]
    client.publish(topic, "own")
    client.nothing()
    # a message between any two SUBSCRIBEs, all in one go
    client.subscribe((topic, 1))
    client.await_packet(PUBLISH)
    client.send(*[wire.subscribe(V5, 100 + i, [(topic, options(i % 2, handling=2))])
                  + wire.publish(V5, topic, b"%d" % i, i % 2, pid=500 + i if i % 2 else None) for i in range(10)])
    for _ in range(10):
        client.await_packet(SUBACK)
    for i in range(5):
        client.await_packet(PUBACK)
    assert sorted(payloads(collect(client))) == [b"%d" % i for i in range(10)]
    client.publish(topic, retain=True)


def test_queued_messages_survive_a_new_subscribe(connect, cid, topic):
    """Replacing a subscription does not touch what is already queued. [MQTT5-3.8.4-4] [MQTT5-3.8.4-3]"""
    client, pub = connect(cid, properties={"receive_maximum": 1}), connect()
    client.subscribe(topic, qos=1)
    for i in range(4):
        pub.publish(topic, str(i), qos=1)
    p = client.expect_publish(topic, "0", flow=False)
    client.subscribe(topic, qos=0)
    client.ack(PUBACK, p.pid)
    assert payloads(collect(client)) == [b"1", b"2", b"3"]


# 3.8.3.1: No Local, Retain As Published, Retain Handling

def test_no_local(connect, topic):
    """No Local 1: nothing that this client id published comes back, at any QoS; everything from others
    does, and what matches another subscription. [MQTT5-3.8.3-3]"""
    client, other = connect(), connect()
    client.subscribe((topic + "/own", options(2, no_local=True)), (topic + "/both", options(0, no_local=True)),
                     (topic + "/+/x", options(0, no_local=True)), (topic + "/echo", 0))
    for qos in (0, 1, 2):
        client.publish(topic + "/own", "mine", qos=qos)
        other.publish(topic + "/own", f"theirs{qos}", qos=qos)
    client.publish(topic + "/echo", "echo")
    client.publish(topic + "/own/x", "mine")
    other.ping()
    assert sorted(payloads(collect(client))) == [b"echo", b"theirs0", b"theirs1", b"theirs2"]
    client.publish(topic + "/both", "mine")
    client.subscribe((topic + "/both", 0))
    client.publish(topic + "/both", "now")
    client.expect_publish(topic + "/both", "now")
    client.nothing()
    # of two that match, the one without No Local brings it
    client.subscribe((topic + "/two/#", options(2, no_local=True)), properties={"subscription_identifier": 1})
    client.subscribe((topic + "/two/+", 0), properties={"subscription_identifier": 2})
    client.publish(topic + "/two/x", "mine", qos=1)
    assert client.expect_publish(topic + "/two/x", "mine", qos=0).properties == [("subscription_identifier", 2)]
    client.nothing()


def test_no_local_after_reconnect(connect, cid, topic):
    """The option belongs to the session and goes by the client id. [MQTT5-3.8.3-3] [MQTT5-3.1.2-23]"""
    connect_props = dict(clean=False, properties=LASTING)
    client = connect(cid, **connect_props)
    client.subscribe((topic, options(1, no_local=True)))
    client.disconnect()
    client = connect(cid, **connect_props)
    client.publish(topic, "mine", qos=1)
    client.nothing()
    connect().publish(topic, "theirs", qos=1)
    client.expect_publish(topic, "theirs", qos=1)


def test_retain_as_published(connect, topic):
    """Retain As Published 0: forwarded with RETAIN 0; 1: with the flag that the publisher set, also on
    a message that clears. Retained messages for a new subscription have RETAIN 1 in any case.
    [MQTT5-3.3.1-12] [MQTT5-3.3.1-13]"""
    plain, as_is, pub = connect(), connect(), connect()
    plain.subscribe((topic, 1))
    as_is.subscribe((topic, options(1, as_published=True)))
    for payload, qos, retain in [("a", 0, True), ("b", 1, False), ("c", 1, True), ("d", 0, False)]:
        pub.publish(topic, payload, qos=qos, retain=retain)
        plain.expect_publish(topic, payload, qos=qos, retain=False)
        as_is.expect_publish(topic, payload, qos=qos, retain=retain)
    for flags in (0, options(as_published=True)):
        late = connect()
        late.subscribe((topic, flags))
        late.expect_publish(topic, "c", retain=True)
    pub.publish(topic, "", qos=1, retain=True)
    plain.expect_publish(topic, "", retain=False)
    as_is.expect_publish(topic, "", retain=True)


def test_retain_as_published_is_kept_in_queue(connect, cid, topic):
    """[MQTT5-3.3.1-12] [MQTT5-3.3.1-13]"""
    client = connect(cid, properties=LASTING)
    client.subscribe((topic + "/0", 1), (topic + "/1", options(1, as_published=True)))
    client.disconnect()
    pub = connect()
    for name in "01":
        pub.publish(f"{topic}/{name}", "x", qos=1, retain=True)
    client = connect(cid, clean=False)
    assert {p.topic[-1]: p.retain for p in collect(client)} == {"0": False, "1": True}
    for name in "01":
        pub.publish(f"{topic}/{name}", retain=True)


def test_retain_handling(connect, cid, topic):
    """Retain Handling 0 sends the retained messages at every SUBSCRIBE, 1 only if the subscription did
    not exist in this session, 2 never. Another filter is another subscription, even if it matches
    the same topics. [MQTT5-3.3.1-9] [MQTT5-3.3.1-10] [MQTT5-3.3.1-11] [MQTT5-3.8.4-4]"""
    pub = connect()
    pub.publish(topic, "kept", qos=1, retain=True)
    client = connect(cid, clean=False, properties=LASTING)

    def sent(handling, filter=topic):
        client.subscribe((filter, options(1, handling=handling)))
        found = collect(client)
        assert all((p.topic, p.payload, p.qos, p.retain) == (topic, b"kept", 1, True) for p in found)
        return len(found)

    assert sent(2) == 0         # new
    assert sent(2) == 0         # there already
    assert sent(1) == 0
    assert sent(0) == 1
    assert sent(0) == 1
    assert sent(1, topic + "/#") == 1
    assert sent(1, topic + "/#") == 0
    client.unsubscribe(topic)
    assert sent(1) == 1
    client.disconnect()
    client = connect(cid, clean=False, properties=LASTING)
    assert client.connack.session_present
    assert sent(1) == 0         # there since the last connection
    assert sent(0) == 1
    client.disconnect()
    client = connect(cid, clean=True)
    assert sent(1) == 1         # a new session
    pub.publish(topic, retain=True)


# 3.3.4, 3.8.2.1.2: overlapping subscriptions, subscription identifiers

def check_copies(copies, subscriptions):
    """The copies are right for these matching subscriptions, (QoS, identifier or None): one with the
    highest QoS and all identifiers, or one for each."""
    got = [(p.qos, p.props("subscription_identifier")) for p in copies]
    ids = sorted(n for _, n in subscriptions if n is not None)
    if len(got) == 1:
        assert got[0][0] == max(qos for qos, _ in subscriptions), copies
        assert sorted(got[0][1]) == ids, copies
    else:
        assert sorted(got) == sorted((qos, [] if n is None else [n]) for qos, n in subscriptions), copies


@pytest.mark.parametrize("subscriptions", [
    [("/a", 0, None), ("/+", 1, None), ("/#", 2, None)],
    [("/a", 2, 1), ("/+", 1, None)],
    [("/a", 0, 7), ("/+", 1, 8), ("/#", 2, 9)],
    [("/a", 2, 9), ("/+", 2, 9), ("/#", 2, 9)],
    [("/a", 1, 268435455), ("/#", 0, 1), ("/b", 2, 5)],
], ids=["no-ids", "one-id", "three-ids", "same-id", "extreme-ids"])
def test_overlapping_subscriptions(connect, cid, topic, subscriptions):
    """A message that matches several subscriptions is delivered at least once at the highest of their
    QoS, with the identifiers of all that match: in one copy, or in one copy for each.
    [MQTT5-3.3.4-2] [MQTT5-3.3.4-3] [MQTT5-3.3.4-4] [MQTT5-3.3.4-5] [MQTT5-3.3.2-3]"""
    client, pub = connect(cid, properties=LASTING), connect()
    for filter, qos, n in subscriptions:
        client.subscribe((topic + filter, qos), properties=None if n is None else {"subscription_identifier": n})
    matching = [(qos, n) for filter, qos, n in subscriptions if filter != "/b"]
    pub.publish(topic + "/a", "live", qos=2)
    check_copies(collect(client), matching)
    client.disconnect()
    pub.publish(topic + "/a", "queued", qos=2)
    client = connect(cid, clean=False)
    copies = collect(client)
    assert set(payloads(copies)) == {b"queued"}
    try:
        check_copies(copies, matching)
    except AssertionError:      # copies at QoS 0 need not be queued
        check_copies(copies, [m for m in matching if m[0]])


def test_very_many_overlapping_subscriptions(connect, topic):
    """There is no bound to the identifiers of one message but the size of a packet.
    [MQTT5-3.3.4-4] [MQTT5-3.3.4-5]"""
    client, pub = connect(), connect()
    name = topic + "/a/b/c/d/e/f/g/h"
    filters = ["/".join([topic] + [level if i >> n & 1 else "+" for n, level in enumerate("abcdefgh")]) for i in range(256)]
    for n, filter in enumerate(filters, 1):
        client.send(wire.subscribe(V5, n, [(filter, 1)], {"subscription_identifier": n}))
    for n in range(1, 257):
        client.expect(SUBACK, pid=n, reasons=[1])
    pub.publish(name, "x", qos=1)
    check_copies(collect(client), [(1, n) for n in range(1, 257)])


@pytest.mark.parametrize("n", [1, 127, 128, 16383, 16384, 2097151, 2097152, 268435455])
def test_subscription_identifier(connect, cid, topic, n):
    """The identifier is sent with live and retained messages that match, and stays with the session.
    All filters of one SUBSCRIBE have the same. [MQTT5-3.3.4-3] [MQTT5-1.5.5-1]"""
    pub = connect()
    pub.publish(topic + "/r", "kept", qos=1, retain=True)
    client = connect(cid, properties=LASTING)
    client.subscribe((topic + "/r", 1), (topic + "/s", 0), properties={"subscription_identifier": n})
    assert client.expect_publish(topic + "/r", "kept", retain=True).properties == [("subscription_identifier", n)]
    pub.publish(topic + "/s", "live")
    assert client.expect_publish(topic + "/s", "live").properties == [("subscription_identifier", n)]
    client.disconnect()
    client = connect(cid, clean=False)
    pub.publish(topic + "/r", "resumed", qos=1, retain=True)
    assert client.expect_publish(topic + "/r", "resumed").properties == [("subscription_identifier", n)]
    client.unsubscribe(topic + "/r")
    client.subscribe((topic + "/r", options(handling=2)))
    pub.publish(topic + "/r", "", retain=True)
    assert client.expect_publish(topic + "/r", "").properties == []


# 3.10, 3.11: UNSUBSCRIBE and UNSUBACK

def test_unsuback(connect, topic):
    """Every UNSUBSCRIBE is answered with one UNSUBACK of the same id with one code per filter in their
    order: 0x00, or 0x11 where no such subscription was. Filters are handled in turn.
    [MQTT5-3.10.4-4] [MQTT5-3.10.4-5] [MQTT5-3.10.4-6] [MQTT5-3.11.3-1] [MQTT5-3.11.3-2] [MQTT5-2.2.1-6]"""
    client = connect()
    client.subscribe(topic + "/a", topic + "/b", topic + "/#")
    for pid in (1, 65535):
        client.send(wire.unsubscribe(V5, pid, [topic + "/none"]))
        client.expect(UNSUBACK, pid=pid, reasons=[NO_SUBSCRIPTION])
    p = client.unsubscribe(topic + "/c", topic + "/b", topic + "/b", topic + "/#", topic + "/+", topic + "/a")
    assert p.reasons == [NO_SUBSCRIPTION, SUCCESS, NO_SUBSCRIPTION, SUCCESS, NO_SUBSCRIPTION, SUCCESS]
    client.nothing()


def test_unsubscribe_compares_characters(connect, topic):
    """Only a subscription with exactly the same filter ends; wildcards are characters here.
    [MQTT5-3.10.4-1] [MQTT5-3.10.4-2]"""
    client, pub = connect(), connect()
    client.subscribe(topic + "/a/b")
    for other in ("/#", "/+/b", "/a/+", "/a/b/", "/A/b", "/a", "/a/b/#"):
        assert client.unsubscribe(topic + other).reasons == [NO_SUBSCRIPTION]
    pub.publish(topic + "/a/b", "still")
    client.expect_publish(topic + "/a/b", "still")
    client.subscribe(topic + "/a/#")
    assert client.unsubscribe(topic + "/a/b").reasons == [SUCCESS]
    pub.publish(topic + "/a/b", "by the other one")
    client.expect_publish(topic + "/a/b", "by the other one")
    assert client.unsubscribe(topic + "/a/#").reasons == [SUCCESS]
    pub.publish(topic + "/a/b", "gone", qos=1)
    client.nothing()


def test_unsubscribe_finishes_what_has_begun(connect, cid, topic):
    """After UNSUBSCRIBE no new message is added, but deliveries of QoS 1 and 2 that have begun are
    finished, also over a reconnect. [MQTT5-3.10.4-2] [MQTT5-3.10.4-3]"""
    client, pub = connect(cid, properties=LASTING), connect()
    client.subscribe(topic, qos=2)
    for payload, qos in [("one", 1), ("two", 2), ("three", 2)]:
        pub.publish(topic, payload, qos=qos)
    one, two, three = [client.expect_publish(topic, flow=False).pid for _ in range(3)]
    assert client.unsubscribe(topic).reasons == [SUCCESS]
    pub.publish(topic, "late", qos=2)
    client.ack(PUBREC, two)
    client.expect(PUBREL, pid=two, reason=SUCCESS)
    client.ack(PUBCOMP, two)
    client.nothing()
    client.close()
    client = connect(cid, clean=False)
    assert client.connack.session_present
    client.expect_publish(topic, "one", qos=1, dup=True, pid=one)
    client.expect_publish(topic, "three", qos=2, dup=True, pid=three)
    client.nothing()


# 4.7: topic names and filters

def subscribe_invalid(connect, topic, filter):
    """The filter is refused: by SUBACK, which leaves others in the same packet alone, or by the end."""
    client = connect()
    client.send(wire.subscribe(V5, 1, [(topic, 0), (filter, 0), (topic + "/1", 1)]))
    p = client.receive()
    if p.type == SUBACK:
        assert p.reasons == [0, FILTER_INVALID, 1]
        client.nothing()
        client.publish(topic, "x")
        client.expect_publish(topic, "x")
    else:
        assert p.type == DISCONNECT and p.reason in (MALFORMED, PROTOCOL_ERROR, FILTER_INVALID)
        client.expect_closed()


@pytest.mark.parametrize("filter", ["a#", "#/a", "a/#/b", "##", "a/##", "a+", "+a", "a/b+/c", "++", "a/+b", "+#", "#+", ""])
def test_invalid_filter(connect, topic, filter):
    """# stands alone or after / and is last; + fills a whole level; a filter is not empty. Otherwise
    SUBACK 0x8F or the end. [MQTT5-4.7.1-1] [MQTT5-4.7.1-2] [MQTT5-4.7.3-1]"""
    subscribe_invalid(connect, topic, filter)
    client = connect()
    client.send(wire.unsubscribe(V5, 1, [filter]))
    p = client.receive()
    if p.type == UNSUBACK:
        assert p.reasons[0] in (FILTER_INVALID, NO_SUBSCRIPTION)
        client.nothing()
    else:
        assert p.type == DISCONNECT and p.reason in (MALFORMED, PROTOCOL_ERROR, FILTER_INVALID)
        client.expect_closed()


MATCHES = [     # filter, topics that match, topics that do not; {} is a level of its own for this test
    ("{}/player1", "{}/player1", "{}/player1/ {}/player {}/player1/x {}/PLAYER1 {} /{}/player1"),
    ("{}/player1/#", "{}/player1 {}/player1/ranking {}/player1/score/wimbledon {}/player1/", "{}/player10 {}/player2/x {}"),
    ("{}/#", "{} {}/ {}/a {}/a/b/c {}//", "{}x x{} /{} /{}/a"),
    ("{}/+", "{}/a {}/", "{} {}/a/b {}//"),
    ("{}/+/player1", "{}/x/player1 {}//player1", "{}/player1 {}/x/y/player1 {}/x/player1/"),
    ("{}/+/+", "{}/a/b {}// {}/a/ {}//b", "{}/a {}/a/b/c"),
    ("{}/+/#", "{}/a {}/ {}/a/b/c", "{}"),
    ("+/{}", "a/{} /{}", "{} a/b/{} a/{}/b"),
    ("/+/{}", "/a/{} //{}", "a/{} a/b/{} /{}"),
    ("+/+/{}/#", "a/b/{} //{}/c", "a/{} a/b/c/{}"),
    ("/{}", "/{}", "{} //{} /{}/"),
    ("{}/", "{}/", "{} {}//"),
    ("{}//x", "{}//x", "{}/x {}///x"),
    ("{}/a b", "", "{}/a {}/ab {}/a%20b"),
]


@pytest.mark.parametrize("filter, yes, no", MATCHES)
def test_matching(connect, topic, filter, yes, no):
    """Levels are compared exactly; + is any one level, empty ones included; # is the level above it and
    all below. A message reaches whom it matches and nobody else, live and retained.
    [MQTT5-4.7.1-1] [MQTT5-4.7.1-2] [MQTT5-4.7.3-4] [MQTT5-3.3.2-3] [MQTT5-3.10.4-1]"""
    filter = filter.replace("{}", topic)
    yes, no = (names.replace("{}", topic).split() for names in (yes, no))
    live, pub = connect(), connect()
    live.subscribe(filter)
    for name in yes + no:
        pub.publish(name, name, qos=1, retain=True)
    late = connect()
    late.subscribe(filter)
    for sub in (live, late):
        got = [p for p in collect(sub)]
        assert sorted(p.topic for p in got) == sorted(yes)
        assert all(p.payload.decode() == p.topic for p in got)
    for name in yes + no:
        pub.publish(name, retain=True)


@pytest.mark.parametrize("filter, yes, no", [
    ("#", ["{}", "/{}", "a/b/{}", "{}/"], []),
    ("+", ["{}"], ["/{}", "{}/a", "{}/"]),
    ("/+", ["/{}"], ["{}", "//{}", "/{}/a"]),
    ("+/+", ["/{}", "{}/", "{}/a"], ["{}", "/{}/", "a/b/{}"]),
    ("/#", ["/{}", "//{}"], ["{}", "a/{}"]),
])
def test_matching_of_bare_wildcards(connect, topic, filter, yes, no):
    """[MQTT5-4.7.1-1] [MQTT5-4.7.1-2] [MQTT5-4.7.3-4]"""
    yes, no = ([name.replace("{}", topic) for name in names] for names in (yes, no))
    sub, pub = connect(), connect()
    sub.subscribe((filter, options(handling=2)))
    for name in yes + no:
        pub.publish(name, "here " + topic)
    pub.ping()
    assert [p.topic for p in collect(sub) if p.payload == b"here " + topic.encode()] == yes


def test_names_are_taken_literally(connect, topic):
    """No normalisation, no case folding, no trimming; U+FEFF is a character like any other.
    [MQTT5-4.7.3-4] [MQTT5-1.5.4-3] [MQTT5-3.3.2-3]"""
    names = [topic + "/" + name for name in [
        "a", "A", " a", "a ", "\ufeffa", "a\ufeff", "\u00e9", "e\u0301", "\u00c9", "\u212b", "\u00c5", "\uff41",
        "\u20ac", "\U0001f600", "\ud7ff", "\ue000", "\U00010000", "%61", "a\\", "'\"", "$a", "x" * 1000]]
    subs = [connect() for _ in names]
    for sub, name in zip(subs, names):
        sub.subscribe(name)
    every, pub = connect(), connect()
    every.subscribe(topic + "/+")
    for name in names:
        pub.publish(name, name)
    pub.ping()
    for sub, name in zip(subs, names):
        sub.expect_publish(name, name)
        sub.nothing()
    assert [p.topic for p in collect(every)] == names


def test_long_names(connect):
    """A topic and a filter may have 65535 bytes, in any number of levels that fits. [MQTT5-4.7.3-4]"""
    long = "long/" + "x" * 65530
    deep = "deep" + "/" * 150
    sub, pub = connect(), connect()
    sub.subscribe(long, deep)
    for name in (long, long[:-1], deep, deep + "/"):
        pub.publish(name, "x", qos=1)
    sub.expect_publish(long, "x")
    sub.expect_publish(deep, "x")
    sub.nothing()


def test_very_many_levels(connect, topic):
    """A name of thousands of levels is well formed. The server accepts it, or says that it does not: in
    the ack or in DISCONNECT. [MQTT5-4.7.3-4] [MQTT5-3.9.3-2] [MQTT5-3.4.2-1]"""
    name = topic + "/" * 20000
    accepted = []
    for filter in (name, name + "+", name + "#"):
        client = connect()
        client.send(wire.subscribe(V5, 1, [(filter, 1)]))
        p = client.receive()
        if p.type == DISCONNECT:
            assert p.reason in (FILTER_INVALID, QUOTA_EXCEEDED)
        else:
            assert p.type == SUBACK and p.reasons[0] in (1, FILTER_INVALID, QUOTA_EXCEEDED)
            accepted += [client] * (p.reasons[0] == 1)
    client = connect()
    client.send(wire.publish(V5, name, "deep", 1, pid=9))
    p = client.receive()
    if p.type == DISCONNECT:
        assert p.reason in (TOPIC_INVALID, QUOTA_EXCEEDED)
    else:
        assert p.type == PUBACK and p.reason in (SUCCESS, NO_SUBSCRIBERS, TOPIC_INVALID, QUOTA_EXCEEDED)
        for sub in accepted:
            assert [m.topic for m in collect(sub)] == [name] * (p.reason == SUCCESS)


def test_dollar_topics(new_broker, connect):
    """Filters that begin with # or + do not match topics that begin with $, live or retained; neither
    does a shared # do. [MQTT5-4.7.2-1]"""
    broker = new_broker("sys_interval 1")
    every, shared, plus, sys = [connect(broker=broker) for _ in range(4)]
    every.subscribe("#")
    shared.subscribe("$share/group/#")
    plus.subscribe("+/broker/#", "+/#", "+")
    sys.subscribe("$SYS/#")
    p = sys.expect(PUBLISH)
    assert p.topic.startswith("$SYS/")      # what is retained
    while p.retain:
        p = sys.expect(PUBLISH)
        assert p.topic.startswith("$SYS/")  # and then a live one
    every.nothing()
    shared.nothing()
    plus.nothing()
    sys.publish("plain/broker/x", "x")
    for sub in (every, shared, plus):
        assert {p.topic for p in collect(sub)} == {"plain/broker/x"}


# 4.8.2: shared subscriptions

@pytest.mark.parametrize("filter", ["$share/", "$share//", "$share/g", "$share/g/", "$share//t", "$share/+/t", "$share/#/t",
                                    "$share/a+b/t", "$share/a#/t", "$share/g/a#", "$share/g/#/a", "$share/g/+a"])
def test_invalid_shared_filter(connect, topic, filter):
    """$share/NAME/FILTER: a NAME of at least one character without / + #, and a filter that is valid
    itself. Otherwise SUBACK 0x8F or the end. [MQTT5-4.8.2-1] [MQTT5-4.8.2-2]"""
    subscribe_invalid(connect, topic, filter)


def test_shared_prefix_is_exact(connect, topic):
    """$share/g//t is the filter /t. $SHARE/.. and $sharex/.. are ordinary filters of ordinary topics.
    [MQTT5-4.8.2-1] [MQTT5-4.8.2-2]"""
    slash, other, pub = connect(), connect(), connect()
    slash.subscribe(f"$share/g//{topic}")
    other.subscribe(f"$SHARE/g/{topic}", f"$sharex/g/{topic}", f"x$share/g/{topic}")
    pub.publish(topic, "without")
    pub.publish("/" + topic, "with")
    pub.ping()
    assert payloads(collect(slash)) == [b"with"]
    other.nothing()


def test_shared_distribution(connect, topic):
    """Each message goes to exactly one member of a group, and the members share the work. Other groups,
    groups of the same name with another filter, and plain subscriptions each get their own copy.
    [MQTT5-4.8.2-3] [MQTT5-4.5.0-1]"""
    members = [connect(), connect(), connect()]
    other_group, other_filter, plain, pub = connect(), connect(), connect(), connect()
    for qos, member in enumerate(members):
        member.subscribe(f"$share/g/{topic}", qos=qos)
    other_group.subscribe(f"$share/h/{topic}", qos=2)
    other_filter.subscribe(f"$share/g/{topic}/#", qos=2)
    plain.subscribe(topic, qos=2)
    sent = [b"%d" % i for i in range(18)]
    for payload in sent:
        pub.publish(topic, payload, qos=2)
    shares = [collect(member) for member in members]
    for granted, share in enumerate(shares):
        assert share, "a member without work"
        assert {p.qos for p in share} == {granted}      # the QoS of the one who was chosen
        assert {p.topic for p in share} == {topic}
        assert payloads(share) == sorted(payloads(share), key=int)
    assert sorted((p for share in shares for p in payloads(share)), key=int) == sent
    for sub in (other_group, other_filter, plain):
        assert payloads(collect(sub)) == sent


def test_shared_beside_plain(connect, topic):
    """In one client, too, shared and plain subscriptions and several groups are independent: a copy for
    each, with the identifier of each. [MQTT5-3.3.4-5] [MQTT5-4.8.2-3]"""
    client, pub = connect(), connect()
    client.subscribe((topic, 2), properties={"subscription_identifier": 1})
    client.subscribe((f"$share/g/{topic}", 0), properties={"subscription_identifier": 2})
    client.subscribe((f"$share/h/{topic}", 1))
    pub.publish(topic, "x", qos=2)
    got = sorted((p.qos, p.topic, p.payload, p.properties) for p in collect(client))
    assert got == [(0, topic, b"x", [("subscription_identifier", 2)]), (1, topic, b"x", []),
                   (2, topic, b"x", [("subscription_identifier", 1)])]


def test_shared_subscription_identifier(connect, topic):
    """The message carries the identifier of the chosen member alone. [MQTT5-3.3.4-3]"""
    members, pub = [connect(), connect()], connect()
    for n, member in enumerate(members, 1):
        member.subscribe(f"$share/g/{topic}", properties={"subscription_identifier": n})
    for i in range(8):
        pub.publish(topic, str(i), qos=1)
    total = 0
    for n, member in enumerate(members, 1):
        for p in collect(member):
            total += 1
            assert p.properties == [("subscription_identifier", n)]
    assert total == 8


def test_shared_subscribe_again_and_leave(connect, topic):
    """Subscribing again changes the options and adds no share; UNSUBSCRIBE with the whole string
    leaves, with the plain filter it does not. [MQTT5-3.10.4-1] [MQTT5-3.10.4-5] [MQTT5-3.8.4-3]"""
    one, two, pub = connect(), connect(), connect()
    shared = f"$share/g/{topic}"
    one.subscribe(shared, qos=2)
    one.subscribe(shared, qos=1)
    pub.publish(topic, "x", qos=2)
    one.expect_publish(topic, "x", qos=1)
    one.nothing()
    two.subscribe(shared, qos=1)
    assert one.unsubscribe(topic, f"$share/h/{topic}", shared, shared).reasons == \
        [NO_SUBSCRIPTION, NO_SUBSCRIPTION, SUCCESS, NO_SUBSCRIPTION]
    sent = [b"%d" % i for i in range(4)]
    for payload in sent:
        pub.publish(topic, payload, qos=1)
    one.nothing()
    assert payloads(collect(two)) == sent
    two.unsubscribe(shared)
    pub.publish(topic, "nobody", qos=1)
    two.nothing()


def test_shared_and_retained(connect, topic):
    """Shared subscriptions get no retained messages at SUBSCRIBE, be they new or not."""
    sub, pub = connect(), connect()
    pub.publish(topic, "kept", qos=1, retain=True)
    for handling in (0, 1, 0):
        sub.subscribe((f"$share/g/{topic}", options(1, handling=handling)))
        sub.nothing()
    pub.publish(topic, "live", qos=1, retain=True)
    sub.expect_publish(topic, "live", qos=1, retain=False)
    sub.subscribe((f"$share/g/{topic}", options(1, as_published=True)))
    pub.publish(topic, "", qos=1, retain=True)
    sub.expect_publish(topic, "", qos=1, retain=True)
    sub.nothing()


def test_shared_no_local(connect, topic):
    """No Local on a shared subscription is a protocol error. [MQTT5-3.8.3-4]"""
    client = connect()
    client.send(wire.subscribe(V5, 1, [(f"$share/g/{topic}", options(no_local=True))]))
    client.expect_disconnect(PROTOCOL_ERROR)


def test_shared_with_nobody_connected(connect, cid, topic):
    """With no member connected the message waits in a session of the group. [MQTT5-4.5.0-1]"""
    member, pub = connect(cid, properties=LASTING), connect()
    member.subscribe(f"$share/g/{topic}", qos=1)
    member.disconnect()
    pub.publish(topic, "waiting", qos=1)
    member = connect(cid, clean=False)
    member.expect_publish(topic, "waiting", qos=1)
    member.nothing()


def chosen(members, topic):
    """Which member has got the message: (member, others, packet), without any ack."""
    found = []
    for member in members:
        member.send(wire.pingreq())
        p = member.receive()
        if p.type == PUBLISH:
            found.append((member, p))
            p = member.receive()
        assert p.type == PINGRESP
    (one, p), = found
    assert p.topic == topic and not p.dup
    return one, [m for m in members if m is not one], p


def test_shared_qos_2_stays(connect, topic):
    """A QoS 2 delivery that has begun is completed with the same client when it comes back; nobody else
    gets the message meanwhile. [MQTT5-4.8.2-4]"""
    members, pub = [connect(properties=LASTING), connect(properties=LASTING)], connect()
    for member in members:
        member.subscribe(f"$share/g/{topic}", qos=2)
    pub.publish(topic, "only once", qos=2)
    one, (other,), p = chosen(members, topic)
    one.close()
    pub.publish(topic, "marker", qos=2)
    assert b"only once" not in payloads(collect(other))
    again = connect(one.id, clean=False, properties=LASTING)
    again.expect_publish(topic, "only once", qos=2, dup=True, pid=p.pid)
    assert b"only once" not in payloads(collect(other))


def test_shared_qos_2_dies_with_its_session(connect, topic):
    """If the session of the chosen client ends first, its QoS 2 message goes to nobody else.
    [MQTT5-4.8.2-5]"""
    members, pub = [connect(), connect()], connect()
    for member in members:
        member.subscribe(f"$share/g/{topic}", qos=2)
    pub.publish(topic, "dies", qos=2)
    one, (other,), _ = chosen(members, topic)
    one.close()
    connect(one.id).nothing()           # its session is over
    pub.publish(topic, "marker", qos=2)
    assert payloads(collect(other)) == [b"marker"]


def test_shared_qos_1_moves_on(connect, topic):
    """If the session of the chosen client ends, its unacknowledged QoS 1 messages should go to another
    member of the group, those in flight and those queued; each is new to that one."""
    members, pub = [connect(properties={"receive_maximum": 2}), connect()], connect()
    for member in members:
        member.subscribe(f"$share/g/{topic}", qos=1)
    sent = [b"%d" % i for i in range(12)]
    for payload in sent:
        pub.publish(topic, payload, qos=1)
    one, other = members
    first = one.expect_publish(topic, qos=1)                # this one it acknowledges
    held = [one.expect_publish(topic, qos=1, flow=False)]   # these it does not
    one.ping()
    one.close()
    connect(one.id).nothing()
    got = collect(other)
    assert all(not p.dup for p in got)
    assert sorted(payloads(got) + [first.payload], key=int) == sent, held


@pytest.mark.parametrize("qos", [1, 2])
def test_shared_member_comes_back(connect, topic, qos):
    """What waits for a member that is away is neither lost nor sent twice, whether it waits or goes to
    another. A single member finds it all. [MQTT5-4.8.2-4] [MQTT5-4.5.0-1] [MQTT5-4.4.0-1]"""
    props = {"receive_maximum": 1, **LASTING}
    one, pub = connect(properties=props), connect()
    one.subscribe(f"$share/g/{topic}", qos=qos)
    sent = [b"%d" % i for i in range(16)]
    for payload in sent[:4]:
        pub.publish(topic, payload, qos=qos)
    pid = one.expect_publish(topic, "0", qos=qos, flow=False).pid
    one.close()
    one = connect(one.id, clean=False, properties=props)
    one.expect_publish(topic, "0", qos=qos, dup=True, pid=pid)
    assert payloads(collect(one)) == sent[1:4]

    other = connect()
    other.subscribe(f"$share/g/{topic}", qos=qos)
    for payload in sent[4:12]:
        pub.publish(topic, payload, qos=qos)
    in_flight = one.expect_publish(topic, qos=qos, flow=False).payload
    one.close()
    connect(one.id, clean=False, properties=props).close()      # the server knows that it is away
    for payload in sent[12:]:
        pub.publish(topic, payload, qos=qos)
    got = collections.Counter(payloads(collect(other)))
    one = connect(one.id, clean=False, properties=props)
    got.update(payloads(collect(one)))
    if qos == 1:
        assert got.pop(in_flight) in (1, 2)
    else:
        assert got.pop(in_flight) == 1
    assert got == {payload: 1 for payload in sent[4:] if payload != in_flight}
    other.nothing()


@pytest.mark.parametrize("qos, ack, reason", [(1, PUBACK, 0x80), (1, PUBACK, 0x97), (2, PUBREC, 0x83), (2, PUBREC, 0x99)])
def test_shared_refused_message(connect, topic, qos, ack, reason):
    """If the chosen client answers with an error the message is discarded; nobody else is tried.
    [MQTT5-4.8.2-6] [MQTT5-4.4.0-2]"""
    members, pub = [connect(), connect()], connect()
    for member in members:
        member.subscribe(f"$share/g/{topic}", qos=2)
    pub.publish(topic, "refused", qos=qos)
    one, (other,), p = chosen(members, topic)
    one.ack(ack, p.pid, reason)
    one.nothing()
    other.nothing()
    one.close()
    connect(one.id).nothing()
    pub.publish(topic, "next", qos=qos)
    assert payloads(collect(other)) == [b"next"]


def test_shared_and_maximum_packet_size(connect, topic):
    """A message too large for the chosen member goes to another or is discarded; the member is not
    bothered with it, nor does it lose its place. [MQTT5-3.1.2-24] [MQTT5-3.1.2-25]"""
    small, other, pub = connect(properties={"maximum_packet_size": 100, "receive_maximum": 1}), connect(), connect()
    for member in (small, other):
        member.subscribe(f"$share/g/{topic}", qos=1)
    sent = [b"%d" % i * (200 if i % 2 else 1) for i in range(8)]
    for payload in sent:
        pub.publish(topic, payload, qos=1)
    got = payloads(collect(small)), payloads(collect(other))
    assert all(len(payload) == 1 for payload in got[0])
    counted = collections.Counter(got[0] + got[1])
    assert set(sent[::2]) <= set(counted) <= set(sent) and set(counted.values()) == {1}


def test_shared_among_versions(connect, topic):
    """A group whose members speak 5.0 and 3.1.1 is one group, if 3.1.1 is offered $share at all."""
    new, old, pub = connect(), connect(version=V311), connect()
    new.subscribe(f"$share/g/{topic}")
    old.subscribe(f"$share/g/{topic}")
    for i in range(6):
        pub.publish(topic, str(i), qos=1)
    counted = collections.Counter(payloads(collect(new)) + payloads(collect(old)))
    assert counted == {b"%d" % i: 1 for i in range(6)}
