"""What Mosquitto has left is taken over at the first start, and its file is left alone.

How its database is read, damaged or not, is in test_mosqdb.py.
"""

import hashlib
import os
import re
import shutil

import pytest

import test_mosqdb
import wire
from durable import eventually, join, received  # noqa: F401
from test_mosqdb import mosquitto, place  # noqa: F401
from wire import V311, V5, PUBLISH, PUBREC, PUBREL, PUBCOMP

CONFIG = wire.DEFAULT_CONFIG + "log_type all\npersistence true\npersistence_location {dir}/journal/\n"


@pytest.fixture
def heir(new_broker):
    """heir(db, *lines): a broker whose folder has this database; not started yet."""
    def create(db, *lines):
        broker = new_broker(*lines, start=False, config=CONFIG)
        folder = broker.path("journal")
        os.mkdir(folder)
        os.chmod(folder, 0o777)
        shutil.copy(db, os.path.join(folder, "mosquitto.db"))
        os.chmod(os.path.join(folder, "mosquitto.db"), 0o644)
        return broker
    return create


def state(broker):
    """All that would tell of a touch."""
    path = os.path.join(broker.path("journal"), "mosquitto.db")
    stat = os.stat(path)
    with open(path, "rb") as f:
        return hashlib.md5(f.read()).hexdigest(), stat.st_mtime_ns, stat.st_mode, stat.st_ino, stat.st_uid


@pytest.mark.parametrize("lines", [(), ("persistence_file mosquitto.db",)], ids=["default", "named"])
def test_sessions_queues_and_retained(mosquitto, heir, connect, join, lines):
    sub = mosquitto.connect("sub", V5, clean=False, properties={"session_expiry_interval": 100000})
    sub.subscribe(("t/#", 2), properties={"subscription_identifier": 7})
    sub.subscribe(("own", 2 | 4))
    old = mosquitto.connect("old", V311, clean=False)
    old.subscribe(("t/#", 1))
    two = mosquitto.connect("two", V311, clean=False)
    two.subscribe(("two", 2))
    pub = mosquitto.connect("pub", V5)
    pub.publish("two", "first", 2)
    pid = two.expect_publish("two", "first", qos=2, flow=False).pid
    two.ack(PUBREC, pid)
    two.expect(PUBREL, pid=pid)
    for client in sub, old, two:
        client.close()
    props = [("user_property", ("k", "v")), ("content_type", "c")]
    for i in range(10):
        pub.publish(f"t/{i % 2}", f"{i}", 1 + i % 2, properties=props)
    pub.publish("r/kept", "kept", 1, retain=True, properties=props)
    pub.publish("r/gone", "gone", 1, retain=True)
    pub.publish("r/gone", "", 1, retain=True)
    mosquitto.stop()
    broker = heir(mosquitto.db, *lines)
    before = state(broker)
    broker.start()
    broker.wait_log(r"Taken over from .*mosquitto\.db: 3 sessions, 4 subscriptions, \d+ retained")
    wanted = [(f"t/{i % 2}", f"{i}") for i in range(10)]
    sub = join(broker, "sub", present=True)
    p = sub.expect_publish(*wanted[0], qos=1)
    assert p.prop("subscription_identifier") == 7 and p.prop("content_type") == "c"
    assert eventually(sub, wanted[1:]) == wanted[1:]
    old = join(broker, "old", V311, present=True)
    assert sorted(eventually(old, wanted), key=lambda m: int(m[1])) == wanted
    sub.publish("own", "no local", qos=1)
    sub.nothing()
    two = join(broker, "two", V311, present=True)
    two.expect(PUBREL, pid=pid)
    two.ack(PUBCOMP, pid)
    looker = connect(broker=broker, version=V5)
    looker.subscribe("r/#")
    p = looker.expect_publish("r/kept", "kept", retain=True)
    assert p.properties == props
    looker.nothing()
    looker.publish("r/kept", "", qos=1, retain=True)
    # From now on ours counts, also when the first life has ended badly.
    broker.kill()
    assert state(broker) == before
    broker.start()
    assert "Taken over" not in broker.log()
    assert received(join(broker, "sub", present=True)) in ([], wanted[-1:])
    looker = connect(broker=broker)
    looker.subscribe("r/#")
    looker.nothing()
    broker.stop()
    assert state(broker) == before
    broker.start()


def test_the_report_counts_what_was_there(mosquitto, heir):
    pub = mosquitto.connect("pub", V5)
    pub.publish("r", "kept", 1, retain=True)
    mosquitto.stop()
    broker = heir(mosquitto.db)
    broker.start()
    broker.wait_log(r"Taken over from .*: 0 sessions, 0 subscriptions, 1 retained messages?\.")


def test_killed_right_after(mosquitto, heir, join):
    """Whatever has become of the first life: nothing is missing and nothing is there twice."""
    sub = mosquitto.connect("sub", V311, clean=False)
    sub.subscribe(("t", 2))
    sub.close()
    pub = mosquitto.connect("pub", V5)
    for i in range(50):
        pub.publish("t", f"{i}", 2)
    mosquitto.stop()
    broker = heir(mosquitto.db)
    for _ in range(5):
        broker.start()
        broker.kill()
    broker.start()
    wanted = [("t", f"{i}") for i in range(50)]
    assert eventually(join(broker, "sub", V311, present=True), wanted) == wanted


def test_message_that_was_not_released(mosquitto, heir, connect, join):
    """Mosquitto keeps a QoS 2 message until PUBREL, and its publisher relies on the PUBREC that he
    has got: after PUBREL it must arrive, once. [MQTT-4.3.3-2]"""
    half = mosquitto.connect("half", V311, clean=False)
    sub = mosquitto.connect("sub", V311, clean=False)
    sub.subscribe(("t", 2))
    half.send(wire.publish(V311, "t", "half", 2, pid=77))
    half.expect(PUBREC, pid=77)
    mosquitto.stop()
    broker = heir(mosquitto.db)
    broker.start()
    half = join(broker, "half", V311, present=True)
    half.pubrel(77)
    assert eventually(join(broker, "sub", V311, present=True), [("t", "half")]) == [("t", "half")]


def test_damaged_database(mosquitto, heir, join):
    """What comes before the damage is taken over; the broker starts in any case."""
    pub = mosquitto.connect("pub", V5)
    for i in range(5):
        pub.publish(f"r/{i}", "x", 1, retain=True)
    mosquitto.stop()
    broker = heir(mosquitto.db)
    path = os.path.join(broker.path("journal"), "mosquitto.db")
    with open(path, "r+b") as f:
        f.truncate(os.path.getsize(path) - 5)
    before = state(broker)
    broker.start()
    broker.wait_log(r"Warning: .*mosquitto\.db is damaged from byte \d+ on")
    looker = join(broker, "looker")
    looker.subscribe("r/#")
    looker.ping()
    assert 1 <= len([p for p in looker.inbox if p.type == PUBLISH]) <= 5
    assert state(broker) == before


@pytest.mark.parametrize("data", [b"", b"SQLite format 3\0" * 8, b"\x00" * 100], ids=["empty", "sqlite", "zeros"])
def test_what_is_no_database(heir, tmp_path, join, data):
    """One line, and a broker that works. The file is not ours to touch."""
    path = tmp_path / "db"
    path.write_bytes(data)
    broker = heir(str(path))
    before = state(broker)
    broker.start()
    broker.wait_log(r"Warning: .*mosquitto\.db was not taken over")
    join(broker, "a").publish("r", "x", qos=1, retain=True)
    broker.kill()
    broker.start()
    looker = join(broker, "b")
    looker.subscribe("r")
    looker.expect_publish("r", "x", retain=True)
    assert state(broker) == before


def test_database_that_may_not_be_read(heir, tmp_path, join):
    """Beginning without it would leave it out for good: the start is refused, and the next one takes it over."""
    db = test_mosqdb.written(tmp_path, test_mosqdb.header(6), test_mosqdb.config(),
                             test_mosqdb.message(1, b"r", b"kept", retain=1), test_mosqdb.retained(1))
    broker = heir(db)
    path = os.path.join(broker.path("journal"), "mosquitto.db")
    os.chmod(path, 0)
    for _ in range(2):
        code, _, log = broker.run()
        assert code == 1 and re.search(r"Error: .*mosquitto\.db cannot be taken over: Permission denied. Let the", log), log
    os.chmod(path, 0o644)
    broker.start()
    looker = join(broker, "looker")
    looker.subscribe("r")
    looker.expect_publish("r", "kept", retain=True)


@pytest.mark.parametrize("name", ["journal-00000001", "snapshot-00000001", "spare-00000001", "journal-new"])
def test_foreign_file_under_one_of_our_names(new_broker, name):
    """Nothing is overwritten; the broker says which file is in the way."""
    broker = new_broker(start=False, config=CONFIG)
    folder = broker.path("journal")
    os.mkdir(folder)
    os.chmod(folder, 0o777)
    path = os.path.join(folder, f"midge.{name}")
    with open(path, "w") as f:
        f.write("Dear diary,\n" * 100)
    os.chmod(path, 0o666)
    code, _, log = broker.run()
    assert code != 0 and f"midge.{name} was not written by this broker" in log, log
    with open(path) as f:
        assert f.read() == "Dear diary,\n" * 100
