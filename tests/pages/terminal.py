"""A terminal on a machine of its own, as far as namespaces go.

Ports, processes and files under /etc, /opt, /run, /usr/local and /var are its own; whatever is done
there is gone afterwards. So a page is followed word for word, default ports and `sudo` included.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import IO, Self

import pytest

from pages.markdown import ROOT, Block

WAIT_S = 30.0
LOOK_S = 0.02
# Without root, the user is root in there.
NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# Steps come as names of files on 3, and their exit statuses go to 4.
SHELL = """
set -e
ip link set lo up
mount -t tmpfs tmpfs {own}
mount -t tmpfs tmpfs /run
for folder in /etc /opt /usr/local /var {root}; do
    mkdir -p {own}$folder/over {own}$folder/work
    where=$folder
    [ $folder != {root} ] || where={clone}
    mount -t overlay overlay -o \
        lowerdir=$folder,upperdir={own}$folder/over,workdir={own}$folder/work $where
done
cd {start}
set +e -m
while IFS= read -r step <&3; do . "$step" 3<&- 4>&-; echo $? >&4; done
"""
# A subscriber in the background says when it has subscribed: a reader is slower than a test.
SUBSCRIBE = """#!/bin/sh
stdbuf -oL {program} -d "$@" | sed -u -e '/^Subscribed /{{w {flag}
d}}' -e '/^Client .* \\(sending\\|received\\) /d'
"""
# What a machine has that this one lacks: systemd, for the services that pages restart.
SYSTEMCTL = """#!/bin/sh
case "$*" in
"restart mosquitto")
    mkdir -p /run/mosquitto && chown mosquitto /run/mosquitto
    exec mosquitto --daemon --config-file /etc/mosquitto/mosquitto.conf ;;
"restart edgewise")
    setsid edgewise run >/var/log/edgewise.log 2>&1 &
    until curl --silent --fail --output /dev/null http://127.0.0.1:9464/readyz; do
        kill -0 $! && sleep 0.05 || { cat /var/log/edgewise.log; exit 1; }
    done ;;
*)
    echo "systemctl $*: not here" >&2; exit 1 ;;
esac
"""


def need(*tools: str) -> None:
    """Skip where a program is missing; CI has them all."""
    for tool in tools:
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            missing(f"needs {tool}")


class Terminal:
    """A shell to type a page's commands into."""

    def __init__(self, folder: Path, *, in_clone: bool) -> None:
        """Prepare it.

        Args:
            folder: For all that it needs; empty.
            in_clone: Whether it starts in a clone of this project, or else in an empty folder.
        """
        self._folder = folder
        self._clone = folder / "edgewise"
        self.start_folder = self._clone if in_clone else folder / "here"
        self._screen = folder / "screen"
        self._steps = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._typed: IO[str] | None = None
        self._ended: IO[str] | None = None

    def __enter__(self) -> Self:
        for name in ("edgewise", "here", "own", "bin", "home"):
            (self._folder / name).mkdir()
        steps_in, typed = os.pipe()
        ended, statuses = os.pipe()
        script = SHELL.format(
            own=self._folder / "own", root=ROOT, clone=self._clone, start=self.start_folder
        )
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        # The descriptors are made to be 3 and 4 by the first shell.
        renumber = f'exec unshare "$@" bash --norc -c "$SCRIPT" 3<&{steps_in} 4>&{statuses}'
        with self._screen.open("wb") as screen:
            self._process = subprocess.Popen(
                ["bash", "--norc", "-c", renumber, "bash", *user, *NAMESPACES],
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=screen,
                env={**self._environment(), "SCRIPT": script},
                pass_fds=(steps_in, statuses),
            )
        os.close(steps_in)
        os.close(statuses)
        self._typed = os.fdopen(typed, "w", buffering=1)
        self._ended = os.fdopen(ended)
        if self._step("true") != 0:
            reason = self._screen.read_text()
            self.__exit__()
            missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            missing(f"no namespaces here: {reason}")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._typed is not None
        assert self._ended is not None
        assert self._process is not None
        self._typed.close()
        self._ended.close()
        # The first process of the namespace ends all others.
        self._process.kill()
        self._process.wait(WAIT_S)

    def follow(self, block: Block) -> None:
        """Do what a block says; raise AssertionError where that comes out otherwise."""
        if block.language == "console":
            for command, shown in commands(block.text):
                self._type(f"{block}: $ {command}", command, shown, block.stays)
        elif block.language == "sh":
            script = f"set -e\n{block.text}\nset +e"
            self._type(f"{block}", script, "", block.stays)
        else:
            assert block.saved_as is not None
            self.save(block.saved_as, block.text)

    def save(self, path: str, text: str) -> None:
        """Save a file; by a step, for only the terminal itself sees what is there."""
        aside = self._folder / "aside"
        aside.write_text(text)
        self.do(f'mkdir -p "$(dirname {path})" && cp {aside} {path}')

    def do(self, command: str) -> None:
        """Run what no page says; it must not fail."""
        self._type(command, command, "", None)

    def _type(self, where: str, command: str, shown: str, stays: str | None) -> None:
        before = self._screen.stat().st_size
        if stays is not None:
            output = self._folder / f"screen-{self._steps}"
            status = self._step(f"{{ {command}\n}} >{output} 2>&1 </dev/null &")
            self._wait(where, output, 0, re.compile(stays))
            return
        flag = self._folder / "subscribed"
        flag.unlink(missing_ok=True)
        status = self._step(command)
        if re.match("mosquitto_sub .*&$", command, re.DOTALL):
            self._wait(where, flag, 0, re.compile("Subscribed"))
        refused = re.search(r"^edgewise: ", shown, re.MULTILINE)
        printed = self._screen.read_bytes()[before:].decode()
        assert (status != 0) == bool(refused), f"{where}\nended with {status}:\n{printed}"
        if shown.strip():
            self._wait(where, self._screen, before, expected(shown))

    def _wait(self, where: str, output: Path, start: int, pattern: re.Pattern[str]) -> None:
        """Wait for what is printed; commands in the background take their time."""
        until = time.monotonic() + WAIT_S
        while True:
            printed = plain(output.read_bytes()[start:].decode()) + "\n" if output.exists() else ""
            if pattern.search(printed):
                return
            late = time.monotonic() > until
            assert not late, f"{where}\nprinted:\n{printed}\nnot:\n{pattern.pattern}"
            time.sleep(LOOK_S)

    def _step(self, text: str) -> int:
        assert self._typed is not None
        assert self._ended is not None
        self._steps += 1
        step = self._folder / f"step-{self._steps}"
        step.write_text(f"{text}\n")
        try:
            self._typed.write(f"{step}\n")
        except BrokenPipeError:
            return 1
        status = self._ended.readline()
        return int(status) if status else 1

    def _environment(self) -> dict[str, str]:
        """A reader's: this environment's packages are there, for what is installed here too."""
        venv = self._folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        packages = sysconfig.get_path("purelib")
        inside = sysconfig.get_path("purelib", "venv", {"base": str(venv)})
        Path(inside, "all-of-ours.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
        commands = {venv / "bin" / name: module for name, module in MODULES.items()}
        scripts = {
            path: f'#!/bin/sh\nexec "{venv}/bin/python" -m {module} "$@"\n'
            for path, module in commands.items()
        }
        scripts[self._folder / "bin" / "sudo"] = '#!/bin/sh\nexec "$@"\n'
        scripts[self._folder / "bin" / "systemctl"] = SYSTEMCTL
        scripts[self._folder / "bin" / "mosquitto_sub"] = SUBSCRIBE.format(
            program=shutil.which("mosquitto_sub"), flag=self._folder / "subscribed"
        )
        for path, script in scripts.items():
            path.write_text(script)
            path.chmod(0o755)
        kept = ("LANG", "LC_ALL", "TMPDIR", "USER", "CI")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "HOME": str(self._folder / "home"),
            "PATH": f"{self._folder}/bin:{venv}/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
            # What a page installs finds its dependencies here, since there is no network.
            "PYTHONPATH": packages,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # that is: none; hatchling is here
        }


NOTICE = re.compile(r"\[\d+\][+-]? ")
MODULES = {"edgewise": "agent", "pip": "pip"}


def commands(text: str) -> list[tuple[str, str]]:
    """Split a `console` block into commands and what each prints."""
    found = []
    for step in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = step.splitlines()
        count = 1
        while count < len(lines) and not is_whole("\n".join(lines[:count])):
            count += 1
        found.append(("\n".join(lines[:count]), "\n".join(lines[count:])))
    return found


def is_whole(command: str) -> bool:
    """Tell whether a shell would take this without asking for more."""
    if command.endswith("\\"):
        return False
    read = subprocess.run(["bash", "-n"], input=command.encode(), capture_output=True, check=False)
    return read.returncode == 0


def expected(shown: str) -> re.Pattern[str]:
    """Give a pattern for what a page shows: `…` is any text, and alone any lines, or none."""
    lines = (
        r"(?:.*\n)?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in plain(shown).splitlines()
    )
    return re.compile(rf"\A{''.join(lines)}\Z", re.DOTALL)


def plain(printed: str) -> str:
    """Give a text without white space that can't be seen, and without what a shell says of jobs."""
    lines = [line.rstrip() for line in printed.splitlines() if not NOTICE.match(line)]
    return "\n".join(lines).strip()
