"""Fixtures for the tests that talk to a running broker; see wire.py.

    def test_example(connect, topic):
        a, b = connect(), connect(version=V5)
        a.subscribe(topic)
        b.publish(topic, "hello")
        a.expect_publish(topic, "hello")

Tests of a module share one broker, so each uses its own client ids and topics:
those that connect() invents, `cid` and `topic`, and names that begin with them.
"""

import itertools
import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import tls  # noqa: E402
import wire  # noqa: E402

LIMIT_S = 60        # pytest.mark.limit(seconds) for those that need more

numbers = itertools.count(1)


class TimeLimit(Exception):
    """Not a TimeoutError, which a socket that waits would take for its own."""


def pytest_configure(config):
    config.addinivalue_line("markers", "limit(seconds): a time limit of its own")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """No test, set-up and clean-up included, may take longer than the limit."""
    def expired(*_):
        signal.alarm(LIMIT_S // 3)      # the clean-up has a limit as well
        raise TimeLimit(f"{item.nodeid} took more than {limit} s")
    marker = item.get_closest_marker("limit")
    limit = marker.args[0] if marker else LIMIT_S
    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(limit)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def pki():
    """Authorities and certificates, made when they are asked for; see tls.py."""
    made = tls.Pki()
    yield made
    made.cleanup()


@pytest.fixture(scope="module")
def broker():
    """The broker that the tests of a module share: default config plus -v."""
    shared = wire.Broker(args=["-v"])
    try:
        yield shared.start()
    finally:
        shared.cleanup()


@pytest.fixture
def new_broker():
    """new_broker(*option_lines, config=, args=, env=, start=True): a Broker for this test alone.

    With start=False nothing runs yet: use run(), spawn() or start()."""
    brokers = []

    def create(*lines, start=True, **options):
        one = wire.Broker(*lines, **options)
        brokers.append(one)
        return one.start() if start else one

    yield create
    failure = None
    for one in brokers:
        try:
            one.cleanup()
        except Exception as e:
            failure = failure or e
    if failure:
        raise failure


@pytest.fixture
def dial(request):
    """dial(broker=, address=, version=, timeout=, receive_buffer=, context=): a Client on an open
    socket that has sent nothing yet. Without broker or address, to the shared broker."""
    clients = []

    def create(broker=None, address=None, **options):
        if address is None:
            address = (broker or request.getfixturevalue("broker")).address
        client = wire.Client(address, **options)
        clients.append(client)
        return client

    yield create
    for client in clients:
        client.close()


@pytest.fixture
def connect(dial):
    """connect(client_id=, broker=, address=, version=, clean=, ...): a connected Client.

    The rest goes to Client.connect(); client.connack is the answer. Without a client id
    the client gets one that no other test uses."""
    def create(client_id=None, broker=None, address=None, version=wire.V311, timeout=5,
               receive_buffer=None, context=None, **fields):
        client = dial(broker, address, version=version, timeout=timeout, receive_buffer=receive_buffer,
                      context=context)
        client.id = f"id{next(numbers)}" if client_id is None else client_id
        client.connect(client.id, **fields)
        return client
    return create


@pytest.fixture
def cid():
    """A client id that no other test uses."""
    return f"cid{next(numbers)}"


@pytest.fixture
def topic():
    """A topic that no other test uses; topics below it are free too."""
    return f"topic{next(numbers)}"
