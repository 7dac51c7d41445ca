"""TAB, in real shells."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from conftest import PROJECT, Invoke, wait_until

from xdplab import netlink
from xdplab.runner import MODES

SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config"],
}
OTHER_PROJECT = """
from invoke import task

@task
def brew(c):
    open("brewed", "w")

@task
def completion(c, shell, line=""):
    open("run", "w")
"""


@pytest.fixture
def complete(invoke: Invoke) -> Callable[[str], list[str]]:
    """Gives the candidates for a line's last word."""

    def ask(line: str) -> list[str]:
        outcome = invoke("completion", "bash", f"--line={line}")
        assert (outcome.code, outcome.err) == (0, "")
        return [row.partition("\t")[0] for row in outcome.out.splitlines()]

    return ask


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("invoke ver", ["verify"]),
        (".venv/bin/inv ver", ["verify"]),
        ("INVOKE_KERNEL=v6.1 invoke --dry ver", ["verify"]),
        ("invoke --help ver", ["verify"]),
        ("invoke --dr", ["--dry"]),
        ("invoke run --du", ["--duration"]),
        ("invoke run --mode ", list(MODES)),
        ("invoke run --dev lo --mode=n", ["--mode=native"]),
        ("invoke run -m n", ["native"]),
        ("invoke run --on vm --dev ", ["eth0", "lo"]),
        ("invoke verify --dev ", ["lo"]),  # in a network namespace, if nothing else is said
        ("invoke run --dev ", netlink.interfaces()),
        ("invoke run --ip '192.168", []),  # a quote that is open
        ("invoke run --interval ", ["2"]),
        ("invoke matrix --modes ", ["generic", "native"]),
        ("invoke matrix --modes generic,", ["generic,native"]),
        ("invoke filter.l", ["filter.load", "filter.list"]),
        ("invoke filter.load ", netlink.interfaces()),
        ("invoke filter.load nope0,l", ["nope0,lo"]),
        ("invoke filter.load lo --mode s", ["skb"]),
        ("invoke filter.load lo --policy ", ["allow", "deny"]),
        ("invoke filter.add ", []),  # rules: who knows, or a path
        ("invoke filter.add --mode ", ["src", "dst", "src,dst"]),
        ("invoke build --sample xdp_ip", ["xdp_ip_filter"]),
        ("invoke new ", []),
        ("invoke new mine --kind r", ["redirect"]),
        ("invoke setup --source d", ["distro"]),
        ("invoke setup --kernel 5.1", ["5.10", "5.11", "5.12", "5.15", "5.17", "5.19"]),
        ("invoke completion ", ["bash", "zsh", "fish"]),
        ("invoke run --tree ", []),  # a path: the shell's own business
        ("invoke run --kernel ", []),
    ],
)
def test_words_that_can_come_next(
    complete: Callable[[str], list[str]], line: str, words: list[str]
) -> None:
    assert complete(line) == words


def test_all_commands_are_named_and_explained(invoke: Invoke) -> None:
    every = json.loads(invoke("--list", "--list-format=json").out)
    (filters,) = every["collections"]
    listed = every["tasks"] + [one | {"name": f"filter.{one['name']}"} for one in filters["tasks"]]
    rows = [
        row.split("\t") for row in invoke("completion", "fish", "--line=invoke ").out.splitlines()
    ]
    assert dict(rows) == {task["name"]: task["help"] for task in listed}
    for row in invoke("completion", "fish", "--line=invoke run --").out.splitlines():
        assert row.partition("\t")[2], row  # what an option means


def test_trees_and_kernels_that_are_here(
    complete: Callable[[str], list[str]], invoke: Invoke, fake_tree: Path
) -> None:
    assert invoke("patch", "--tree", fake_tree, "--show").code == 0
    (invoke.workspace / "trees").mkdir(parents=True)
    shutil.copytree(fake_tree, invoke.workspace / "trees/v6.1")
    kernel = invoke.workspace / "kernels/6.12"
    kernel.mkdir(parents=True)
    release = "6.12.9-cloud-amd64"
    files = {"image": "vmlinuz", "modules": None, "config": None}
    facts = {"schema": 1, "release": release, "version": "6.12.9", "source": "distro"}
    (kernel / "kernel.json").write_text(json.dumps(facts | files))
    (kernel / "vmlinuz").touch()
    assert complete("invoke build --kernel ") == ["6.1"]
    assert complete("invoke verify --boot 6.12") == ["6.12-cloud", release]
    assert complete("invoke matrix --kernels 6.1,6.12-") == ["6.1,6.12-cloud"]
    assert complete("invoke survey --kernels ") == ["6.1"]


# ---- shells


@dataclass(frozen=True, slots=True)
class Typist:
    """Somebody at a shell, who has sourced what `invoke completion` prints."""

    shell: str
    place: Path
    workspace: Path

    def __call__(self, *lines: str, cwd: Path = PROJECT) -> tuple[list[str], str]:
        """The last word of each line after TAB, and all that was on the screen."""
        invoke = Path(sys.executable).parent
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("INVOKE_")},
            "PATH": f"{invoke}:{os.environ['PATH']}",
            "HOME": str(self.place),  # of zsh's completion cache
            "INVOKE_WORKSPACE": str(self.workspace),
            "TERM": "dumb",
        }
        script = self.place / "script"
        with script.open("w") as file:
            command = ["invoke", "completion", self.shell]
            subprocess.run(command, cwd=PROJECT, env=env, stdout=file, check=True)
        ask = self._fish if self.shell == "fish" else self._by_hand
        return ask(script, lines, cwd, env)

    def _fish(
        self, script: Path, lines: Sequence[str], cwd: Path, env: dict[str, str]
    ) -> tuple[list[str], str]:
        asked = [f"complete --do-complete '{line}'; echo ." for line in lines]
        command = [*SHELLS["fish"], "-c", "\n".join([f"source {script}", *asked])]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True)
        said = iter(done.stdout.splitlines())
        words = []
        for line in lines:
            found = [row.partition("\t")[0] for row in iter(partial(next, said), ".")]
            words.append(found[0] if len(found) == 1 else line.rpartition(" ")[2])
        return words, done.stdout + done.stderr

    def _by_hand(
        self, script: Path, lines: Sequence[str], cwd: Path, env: dict[str, str]
    ) -> tuple[list[str], str]:
        """Press the keys in a terminal: the line, TAB, then what makes it a word for a file."""
        typed = self.place / "typed"
        typed.touch()
        with script.open("a") as file:
            file.write(f"\nnoted() {{ printf '%s\\n' \"${{@: -1}}\" >>'{typed}'; }}\n")
        process, terminal = pty.fork()
        if not process:
            os.chdir(cwd)
            os.execvpe(SHELLS[self.shell][0], SHELLS[self.shell], env)  # noqa: S606
        screen = bytearray()
        reader = threading.Thread(target=_read_all, args=(terminal, screen), daemon=True)
        reader.start()
        os.write(terminal, f"source {script}\r".encode())
        for number, line in enumerate(lines, 1):
            os.write(terminal, f"{line}\t\x01noted \r".encode())
            wait_until(lambda: len(typed.read_text().splitlines()) >= number)  # noqa: B023
        os.write(terminal, b"exit\r")
        os.waitpid(process, 0)
        reader.join()
        os.close(terminal)
        words = typed.read_text().splitlines()
        typed.unlink()
        return words, screen.decode(errors="replace")


def _read_all(terminal: int, screen: bytearray) -> None:
    with contextlib.suppress(OSError):  # the other end is closed
        while True:
            screen += os.read(terminal, 4096)


@pytest.fixture(params=SHELLS)
def typist(request: pytest.FixtureRequest, tmp_path: Path, workspace: Path) -> Typist:
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    place = tmp_path / "home"
    place.mkdir()
    return Typist(request.param, place, workspace)


def test_tab_completes(typist: Typist) -> None:
    words, screen = typist(
        "invoke verif",
        "inv run --durat",
        "invoke run --mode sk",
        "invoke run --ip 1.2.3.4 --mode=sk",
        "invoke matrix --modes generic,n",
        "invoke setup --config x --tree xdp_ip_filter_k",
        "invoke completion zs",
    )
    assert words == [
        *("verify", "--duration", "skb", "--mode=skb", "generic,native"),
        *("xdp_ip_filter_kern.c", "zsh"),
    ]
    assert "Traceback" not in screen


def test_elsewhere_tab_asks_invoke_alone(typist: Typist, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "tasks.py").write_text(OTHER_PROJECT)
    words, screen = typist("invoke bre", "invoke --versio", cwd=other)
    assert words == ["brew", "--version"]
    assert [path.name for path in other.iterdir() if path.suffix != ".pyc"] == ["tasks.py"]
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    words, said = typist("invoke verif", cwd=nowhere)
    assert words == ["verif"]
    assert not re.search("traceback|error|find any", screen + said, re.IGNORECASE)


def test_a_fault_is_not_typed_into_the_line(typist: Typist) -> None:
    wreck = typist.workspace / "kernels/6.1/kernel.json"
    wreck.parent.mkdir(parents=True)
    wreck.write_text("{")
    words, screen = typist("invoke run --boot zz")
    assert words == ["zz"]
    assert "damaged" not in screen


def test_a_script_is_sound(invoke: Invoke) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    script = invoke("completion", "bash").out
    checked = subprocess.run(
        ["shellcheck", "--shell=bash", "-"], input=script, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert checked.stdout == ""


def test_exercises_are_values(invoke: Invoke) -> None:
    found = invoke("completion", "bash", "--line", "invoke exercise v")
    assert [line.split("\t")[0] for line in found.out.splitlines()] == ["vlan"]
