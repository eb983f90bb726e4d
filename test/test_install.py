"""make install and the manual pages."""

import os
import re
import shutil
import stat
import subprocess

import pytest

from wire import ROOT


def readme():
    with open(os.path.join(ROOT, "README.md")) as f:
        return f.read()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The two pages as they were made, by name."""
    out = tmp_path_factory.mktemp("man")
    subprocess.run([os.path.join(ROOT, "cross", "manpages"), out], check=True)
    return {name: (out / name).read_text() for name in ("midge.8", "midge.conf.5")}


def plain(page):
    """What a reader sees of a page, on one line."""
    text = re.sub(r"^\.[A-Z]+ ?", "", page, flags=re.M)
    text = re.sub(r"\\f[BIR]|\\&", "", text).replace("\\-", "-").replace("\\e", "\\")
    return " ".join(text.split())


def rows(section):
    """The cells of the tables in a section of the README."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## )", readme(), re.M | re.S).group(1)
    for line in re.findall(r"^\|(.*)\|$", text, re.M):
        line = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line)
        cells = [c.strip().replace("`", "").replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)]
        if cells[0] != "option" and not cells[0].startswith("---"):
            yield cells


def test_options_of_the_readme(pages):
    """Each option of the README's tables is in the manual, with its default and its meaning."""
    found = list(rows("Options of the configuration file"))
    assert len(found) > 30
    for name, default, mark, meaning in found:
        default = f" (default: {default})" if default else ""
        mark = f" [{mark}]" if mark else ""
        assert f"{name} {meaning}{default}{mark}" in plain(pages["midge.conf.5"])
    found = list(rows("Command line"))
    assert len(found) > 3
    for name, meaning in found:
        assert f"{name} {meaning}" in plain(pages["midge.8"])


def test_example_in_the_manual(pages):
    with open(os.path.join(ROOT, "cross", "midge.conf")) as f:
        for line in f:
            assert " ".join(line.split()) in plain(pages["midge.conf.5"])


def test_no_markdown_left(pages):
    for page in pages.values():
        assert not re.search(r"\]\(|^\||^```|\*\*|`[a-z_]+`", re.sub(r"^\.EX$.*?^\.EE$", "", page, flags=re.M | re.S),
                             re.M), page


def test_formatted(pages, tmp_path):
    """man(7) as the formatters like it."""
    if not shutil.which("mandoc") and not shutil.which("groff"):
        pytest.skip("neither mandoc nor groff here")
    for name, page in pages.items():
        (tmp_path / name).write_text(page)
        if shutil.which("mandoc"):
            done = subprocess.run(["mandoc", "-T", "lint", "-W", "error", tmp_path / name], capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (0, ""), done.stdout
        if shutil.which("groff"):
            done = subprocess.run(["groff", "-man", "-Tascii", "-ww", "-z", tmp_path / name], capture_output=True, text=True)
            assert done.stderr == ""


MARKDOWN = r"""
# midge

First.

## Command line

    midge [-x]

| option | meaning |
| --- | --- |
| `-x` | one\|two \ three |

.not a request, and [a link](#there) with `code-like` words
that goes on.

- item one
  goes on
- item `two`

1. first

### Deeper

```
$ midge -x
## not a section
```

## Options of the configuration file

**Loud.**

## End
"""


def test_markdown(tmp_path):
    """What the README may use is turned into what man shows."""
    shutil.copytree(os.path.join(ROOT, "cross"), tmp_path / "cross")
    shutil.copy(os.path.join(ROOT, "config.h"), tmp_path)
    (tmp_path / "README.md").write_text(MARKDOWN)
    subprocess.run([tmp_path / "cross" / "manpages", tmp_path / "man"], check=True, cwd=tmp_path)
    page = (tmp_path / "man" / "midge.8").read_text()
    options = re.search(r"\.SH OPTIONS\n(.*)\.SH FILES", page, re.S).group(1)
    assert options == r""".TP
\fB\-x\fR
one|two \e three
.PP
\&.not a request, and a link with \fBcode\-like\fR words
that goes on.
.IP \(bu 4
item one
goes on
.IP \(bu 4
item \fBtwo\fR
.IP 1. 4
first
.SS Deeper
.PP
.RS 4
.EX
$ midge \-x
## not a section
.EE
.RE
"""
    assert ".SH DESCRIPTION\n.PP\nLoud.\n" in (tmp_path / "man" / "midge.conf.5").read_text()


def install(*args):
    done = subprocess.run(["make", "-s", "install", *args], cwd=ROOT, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")})
    assert done.returncode == 0, done.stdout + done.stderr


def test_install(tmp_path):
    """Everything goes below DESTDIR, at its place below prefix; a configuration that is there stays."""
    before = os.umask(0o022)
    try:
        install(f"DESTDIR={tmp_path}", "prefix=/opt/midge")
    finally:
        os.umask(before)
    found = {os.path.relpath(os.path.join(place, name), tmp_path): stat.S_IMODE(os.stat(os.path.join(place, name)).st_mode)
             for place, _, names in os.walk(tmp_path) for name in names}
    assert found == {"opt/midge/sbin/midge": 0o755, "opt/midge/share/man/man8/midge.8": 0o644,
                     "opt/midge/share/man/man5/midge.conf.5": 0o644, "etc/midge/midge.conf": 0o644,
                     "opt/midge/lib/systemd/system/midge.service": 0o644}
    unit = (tmp_path / "opt/midge/lib/systemd/system/midge.service").read_text()
    assert "ExecStart=/opt/midge/sbin/midge -c /etc/midge/midge.conf\n" in unit
    done = subprocess.run([tmp_path / "opt/midge/sbin/midge", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("midge version ")
    (tmp_path / "etc/midge/midge.conf").write_text("# mine\n")
    install(f"DESTDIR={tmp_path}", "prefix=/opt/midge")
    assert (tmp_path / "etc/midge/midge.conf").read_text() == "# mine\n"
