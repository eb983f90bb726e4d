"""Least privilege: what the running broker and the journal's processes may not do any more; see sandbox.h."""

import os
import re
import select
import shutil
import signal

import pytest

import tls
from wire import command, password_line, wait_for

JOURNAL = ("persistence true", "persistence_location {dir}")
REFUSED = "Error: The sandbox refused the system call {} to {},.*'sandbox false'"


def sanitized():
    """Whether the program is one that looks for leaks at its end, with /proc and with ptrace."""
    with open(shutil.which(command()[-1]), "rb") as f:
        program = f.read()
    return b"libasan" in program or b"AddressSanitizer" in program


def status(pid, field):
    with open(f"/proc/{pid}/status") as f:
        return next(line.split()[1] for line in f if line.startswith(field + ":"))


def children(broker):
    with open(f"/proc/{broker.pid}/task/{broker.pid}/children") as f:
        return [int(word) for word in f.read().split()]


@pytest.fixture
def sandboxed(new_broker):
    """new_broker() for those tests that need filters: skips where there are none."""
    def create(*lines, **options):
        broker = new_broker(*lines, **options)
        reason = re.search("System calls are not restricted.*", broker.log())
        if reason:
            pytest.skip(reason.group())
        return broker
    return create


@pytest.fixture
def attempting(tmp_path):
    """attempting(name): the environment of a broker that makes a call; see forbidden.c."""
    def create(name, **more):
        return {**tls.preload("forbidden.c", str(tmp_path)), "FORBIDDEN": name,
                "FORBIDDEN_RESULT": "result", **more}
    return create


def result(broker):
    """What came of the call, awaited."""
    def read():
        path = broker.path("result")
        if os.path.exists(path):
            with open(path) as f:
                return f.read().split()
        return None
    return wait_for(read, "result of the call")


def test_state(sandboxed, connect):
    """No new rights, and a filter, in the broker and in the journal's helper."""
    broker = sandboxed(*JOURNAL)
    assert len(children(broker)) == 1
    for pid in [broker.pid] + children(broker):
        assert status(pid, "NoNewPrivs") == "1"
        assert status(pid, "Seccomp") == "2"
    connect(broker=broker).ping()


def test_turned_off(sandboxed, new_broker):
    """sandbox false: no filter, but still no new rights."""
    sandboxed()
    broker = new_broker("sandbox false", *JOURNAL)
    for pid in [broker.pid] + children(broker):
        assert status(pid, "NoNewPrivs") == "1"
        assert status(pid, "Seccomp") == "0"


def test_not_turned_off_by_a_reload(sandboxed):
    broker = sandboxed()
    with open(broker.conf, "a") as f:
        f.write("sandbox false\n")
    broker.signal(signal.SIGHUP)
    broker.wait_log("sandbox")
    assert status(broker.pid, "Seccomp") == "2"


FORBIDDEN = [("execve", "execve"), ("socket", "socket"), ("packet", "socket"), ("ptrace", "ptrace"), ("mmap", "mmap"),
             ("clone", "clone"), ("kill", "kill"), ("getpgid", r"number \d+"), ("x32", r"number \d+")]


@pytest.mark.parametrize("name, said", FORBIDDEN)
def test_refused(sandboxed, connect, attempting, name, said):
    """The call is not made, the log names it, and the broker goes on."""
    broker = sandboxed(env=attempting(name))
    broker.forbidden = True
    connect(broker=broker).ping()
    assert result(broker) == ["ENOSYS"]
    broker.wait_log(REFUSED.format(said, "the broker"))


@pytest.mark.parametrize("name", [name for name, _ in FORBIDDEN if name != "x32"])
def test_possible_without(new_broker, connect, attempting, name):
    """The same calls, without the sandbox: the tests above do not pass for another reason."""
    if name == "packet" and os.geteuid() != 0:
        pytest.skip("needs root")
    if name == "ptrace" and sanitized():
        pytest.skip("is in the way of a sanitizer")
    broker = new_broker("sandbox false", "user root", env=attempting(name))
    connect(broker=broker).ping()
    assert result(broker) == ["done"]


def test_call_of_another_processor(sandboxed, dial, attempting):
    """Its numbers mean other calls: nobody but an intruder makes such calls, and the process ends."""
    broker = sandboxed(env=attempting("int80"))
    if os.uname().machine != "x86_64":
        pytest.skip("for x86_64")
    dial(broker).expect_closed()
    assert broker.wait() == -signal.SIGSYS


@pytest.mark.parametrize("name, said", [("unix", "socket"), ("execve", "clone")])
def test_refused_to_the_store(sandboxed, connect, attempting, name, said):
    """What the broker may is not what the journal's processes may."""
    broker = sandboxed(*JOURNAL, env=attempting(name, FORBIDDEN_IN_STORE="1"))
    broker.forbidden = True
    assert "ENOSYS" in result(broker)
    broker.wait_log(REFUSED.format(said, "the process that writes the journal"))
    connect(broker=broker).ping()


def test_signal_from_outside(sandboxed, connect):
    """SIGSYS that no call caused is nothing."""
    broker = sandboxed()
    broker.signal(signal.SIGSYS)
    connect(broker=broker).ping()
    assert "refused" not in broker.log()


def test_new_helper_and_snapshot(sandboxed, connect):
    """The forked processes of a broker that is in its sandbox: a helper in the place of a dead one, compaction."""
    broker = sandboxed(*JOURNAL)
    old = children(broker)[0]
    os.kill(old, signal.SIGKILL)
    client = connect("keeper", broker=broker, clean=False)
    client.subscribe("kept/#", qos=1)
    client.publish("kept/a", "1", qos=1, retain=True)
    new = wait_for(lambda: [pid for pid in children(broker) if pid != old], "new helper")[0]
    assert status(new, "Seccomp") == "2"
    broker.signal(signal.SIGUSR1)
    wait_for(lambda: any(re.search(r"\.snapshot-\d", name) for name in os.listdir(broker.dir)), "snapshot")
    broker.restart()
    again = connect("keeper", broker=broker, clean=False)
    assert again.connack.session_present


def test_new_helper_in_the_background(sandboxed, connect):
    """With -d a forked process has more to do."""
    broker = sandboxed(*JOURNAL, "log_dest file {dir}/log", "log_dest stderr", "pid_file {dir}/pid", args=["-d"],
                       start=False)
    assert broker.run()[0] == 0
    with open(broker.path("pid")) as f:
        pid = int(f.read())
    try:
        helper = int(open(f"/proc/{pid}/task/{pid}/children").read())
        os.kill(helper, signal.SIGKILL)
        connect("keeper", broker=broker, clean=False).publish("a", "1", qos=1, retain=True)
    finally:
        end = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        assert select.select([end], [], [], 15)[0]
        os.close(end)
    with open(broker.path("log")) as f:
        log = f.read()
    assert "running" in log and "helper process failed" in log and "refused" not in log


# chroot

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@root
def test_chroot(new_broker, connect, tmp_path):
    """What is below the folder goes on working under its old path, also without /proc; the rest is told."""
    if sanitized():
        pytest.skip("a sanitizer needs /proc")
    outside = tmp_path / "acl"
    outside.write_text("pattern readwrite #\n")
    tmp_path.chmod(0o755)
    broker = new_broker("chroot {dir}", "persistence true", "persistence_location {dir}/journal", "log_dest stderr",
                        "log_dest file {dir}/log", "password_file {dir}/users", f"acl_file {outside}", start=False)
    with open(broker.path("users"), "w") as f:
        f.write(password_line("pupil", "old"))
    broker.start()
    assert os.readlink(f"/proc/{broker.pid}/root") == broker.dir
    broker.wait_log(f"Warning: {outside} is outside of the chroot: SIGHUP cannot read it again")
    assert broker.log().count("outside of the chroot") == 1, broker.log()
    connect("keeper", broker=broker, clean=False, username="pupil", password="old").subscribe("kept", qos=1)
    os.kill(children(broker)[0], signal.SIGKILL)
    sender = connect(broker=broker)
    sender.publish("kept", "1", qos=1)
    wait_for(lambda: len(children(broker)) == 1, "new helper")
    for pid in children(broker):
        assert os.readlink(f"/proc/{pid}/root") == broker.dir
        assert len(os.listdir(f"/proc/{pid}/fd")) < 8     # none of the broker's sockets
    # a reload finds what is inside, and keeps the rules from outside
    with open(broker.conf) as f:
        lines = f.read().replace(f"acl_file {outside}\n", "")
    with open(broker.conf, "w") as f:
        f.write(lines)
    with open(broker.path("users"), "w") as f:
        f.write(password_line("pupil", "new"))
    os.rename(broker.path("log"), broker.path("log.old"))
    broker.signal(signal.SIGHUP)
    wait_for(lambda: os.path.exists(broker.path("log")), "new log file")
    connect(broker=broker, username="pupil", password="new").ping()
    connect(broker=broker, username="pupil", password="old", reason=5)
    broker.restart()
    assert connect("keeper", broker=broker, clean=False, username="pupil", password="new").connack.session_present


@root
def test_chroot_that_is_not_there(new_broker):
    for path, why in (("{dir}/none", "No such file or directory"), ("none", "must be a path from the root")):
        code, _, err = new_broker("chroot " + path, start=False).run()
        assert code == 1 and "Error: Unable to chroot to " in err and why in err
