"""The journal belongs to no machine: a card goes from an ARMv6 Pi to a 64-bit computer and back.

Needs build/armv6/midge (`make cross TARGET=armv6`) and qemu-arm; skipped where they are not there.
"""

import os
import shutil
import subprocess

import pytest

import wire
from durable import CONFIG, eventually, join, journal_of  # noqa: F401
from wire import ROOT, V311, V5, PUBREC, Will, wait_for

ARM = os.path.join(ROOT, "build", "armv6", "midge")
QEMU = shutil.which("qemu-arm")
HERE = wire.command()
HOUR = 3600


def arm():
    if not QEMU or not os.path.exists(ARM):
        pytest.skip("there is no build/armv6/midge, or no qemu-arm to run it")
    newest = max(os.path.getmtime(os.path.join(ROOT, name)) for name in ("persist.c", "store.c"))
    if os.path.getmtime(ARM) < newest:
        pytest.skip("build/armv6/midge is older than the journal's sources")
    command = [QEMU, ARM]
    return command


def store(command, path):
    return subprocess.run([*command, "store", path], capture_output=True, text=True)


def start_as(broker, command, monkeypatch):
    monkeypatch.setenv("MIDGE", " ".join(command))
    return broker.start()


@pytest.mark.parametrize("way", ["arm-here", "here-arm"])
def test_there_and_back(new_broker, connect, join, monkeypatch, way):
    there = arm()
    first, second = (there, HERE) if way == "arm-here" else (HERE, there)
    broker = start_as(new_broker(start=False, config=CONFIG), first, monkeypatch)
    a = join(broker, "a")
    a.subscribe(("t/#", 2 | 8), properties={"subscription_identifier": 268435455})
    sender = join(broker, "sender", V311)
    sender.publish("t/1", "in flight", qos=2)
    pid = a.expect_publish("t/1", "in flight", qos=2, flow=False).pid
    a.close()
    five = connect(broker=broker, version=V5)
    five.publish("t/2", "x" * 70000, qos=1, properties={"message_expiry_interval": 100 * HOUR})
    five.publish("r", "kept", qos=1, retain=True, properties={"user_property": ("k", "v")})
    sender.publish("t/3", "half", qos=2, pid=77, flow=False)
    sender.expect(PUBREC, pid=77)
    w = join(broker, "w", will=Will("t/will", "gone", 1, properties={"will_delay_interval": 100 * HOUR}))
    w.close()
    wait_for(lambda: "will session" in store(HERE, journal_of(broker)).stdout, "will in the journal")
    broker.kill()
    texts = [store(command, journal_of(broker)) for command in (first, second)]
    assert texts[0].stdout == texts[1].stdout and texts[0].returncode == texts[1].returncode == 0
    start_as(broker, second, monkeypatch)
    assert "made no sense" not in broker.log() and "damaged" not in broker.log()
    a = join(broker, "a", present=True)
    a.expect_publish("t/1", "in flight", qos=2, dup=True, pid=pid)
    p = a.expect_publish("t/2", "x" * 70000, qos=1)
    assert 99 * HOUR < p.prop("message_expiry_interval") <= 100 * HOUR
    assert p.prop("subscription_identifier") == 268435455
    sender = join(broker, "sender", V311, present=True)
    sender.publish("t/3", "half", qos=2, pid=77, dup=True, flow=False)
    sender.expect(PUBREC, pid=77)
    sender.pubrel(77)
    assert eventually(a, [("t/3", "half")]) == [("t/3", "half")]
    a.subscribe("r")
    assert a.expect_publish("r", "kept", retain=True).prop("user_property") == ("k", "v")
    a.unsubscribe("t/#")
    broker.kill()
    # And back, where the changes of the other one count.
    start_as(broker, first, monkeypatch)
    assert "made no sense" not in broker.log() and "damaged" not in broker.log()
    a = join(broker, "a", present=True)
    five = connect(broker=broker, version=V5)
    five.publish("t/4", "unheard", qos=1)
    a.nothing()
    broker.stop()
    texts = [store(command, journal_of(broker)) for command in (first, second)]
    assert texts[0].stdout == texts[1].stdout and texts[0].returncode == texts[1].returncode == 0
    broker.start()
