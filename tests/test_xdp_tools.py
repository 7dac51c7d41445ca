"""xdp-filter's own tests hold for our filter: run from a checkout of xdp-tools, never copied.

    git clone https://github.com/xdp-project/xdp-tools
    XDPLAB_XDP_TOOLS=xdp-tools pytest tests/test_xdp_tools.py

Its tests call a command, xdp-filter, which tests/xdp_tools/xdp_filter.py stands in for.
What they ask of ports and Ethernet addresses, which ours doesn't look at, is skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, Invoke

CHECKOUT = Path(os.environ.get("XDPLAB_XDP_TOOLS", "/nonexistent")).absolute()
OURS = PROJECT / "tests/xdp_tools"

pytestmark = [
    pytest.mark.root,
    pytest.mark.tree,
    pytest.mark.skipif(
        not (CHECKOUT / "xdp-filter/tests").is_dir(),
        reason="XDPLAB_XDP_TOOLS names no checkout of github.com/xdp-project/xdp-tools",
    ),
]

ETHER, PORTS = "it filters Ethernet addresses", "it filters ports"
BOTH = f"{ETHER}, and ports"
BY_ADDRESS = f"{PORTS}: by_address.IPv6ExtensionHeader does it with an address"
OWN = "it is about which of its programs xdp-filter chooses"

_DIRECTIONS = ("DropSrc", "PassSrc", "DropDst", "PassDst")
_HEADERS = ("routing", "hop_by_hop", "destination_options", "fragment")

# each test: why it is skipped, or "" if it must hold
PYTHON: Mapping[str, str] = {
    **{f"tests.test_basic.LoadUnload.test_load_{what}": "" for what in ("once", "twice", "hw")},
    **{
        f"tests.test_basic.Direct{direction}.test_{what}": why
        for direction in _DIRECTIONS
        for what, why in {
            **{"none_specified": "", "ip": "", "ipv6": "", "ether": ETHER, "port": PORTS}
        }.items()
    },
    **{f"tests.test_basic.IPv6ExtensionHeader.test_{one}": BY_ADDRESS for one in _HEADERS},
    **{f"by_address.IPv6ExtensionHeader.test_{one}": "" for one in _HEADERS},
    **{
        f"tests.test_basic.IPv4ToIPv6Mapping.test_filter_{form}_address": ""
        for form in ("explicit", "converted")
    },
    "tests.test_basic.Status.test_ipv4_feature": "",
    "tests.test_basic.Status.test_ethernet_feature": ETHER,
    "tests.test_basic.Status.test_udp_feature": PORTS,
    "tests.test_basic.Status.test_all_features": BOTH,
    **{
        f"tests.test_slow.ManyAddresses{policy}.test_{what}_{how}": why
        for policy in ("", "Inverted")
        for what, why in {"ip": "", "ether": ETHER, "port": PORTS}.items()
        for how in ("arrive", "status")
    },
}
SHELL: Mapping[str, str] = {
    **{f"test_ipv{version}_{policy}": "" for version in (4, 6) for policy in ("allow", "deny")},
    **{f"test_ether_{policy}": ETHER for policy in ("allow", "deny")},
    **{f"test_ports_{policy}": PORTS for policy in ("allow", "deny")},
    "test_load": OWN,
    "test_print": BOTH,
    "test_output_remove": PORTS,
}


def params(tests: Mapping[str, str]) -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.skip(reason=why)) if why else name
        for name, why in tests.items()
    ]


@pytest.fixture(scope="module")
def environment(labs: Callable[[str], Invoke]) -> dict[str, str]:
    """What their tests and ours in between need to know."""
    invoke = labs("6.1")
    outcome = invoke("build", "--sample", "xdp_filter")
    assert outcome.code == 0, outcome.err
    (program,) = invoke.workspace.glob("builds/*/xdp_filter/xdp_filter")
    return {
        **os.environ,
        "XDPLAB_XDP_FILTER": str(program),
        "XDP_FILTER": str(OURS / "xdp_filter.py"),
        "XDP_LOADER": "true",  # it only tidies up after other programs
        "PYTHONPATH": f"{OURS}:{PROJECT}",
    }


@pytest.fixture(scope="module")
def outcomes(environment: dict[str, str]) -> dict[str, str]:
    """What became of their Python tests, by name."""
    names = [name for name, why in PYTHON.items() if not why]
    modules = ["tests.test_basic", "tests.test_slow", "by_address.IPv6ExtensionHeader"]
    given: list[str | Path] = [CHECKOUT / "xdp-filter", ",".join(modules), ",".join(names)]
    own: list[str | Path] = ["unshare", "--net", "--mount", sys.executable, OURS / "run.py"]
    ended = subprocess.run(
        [*own, *given], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", params(PYTHON))
def test_python_case(name: str, outcomes: dict[str, str]) -> None:
    assert outcomes[name] == "passed"


def test_every_case_is_spoken_for(outcomes: dict[str, str]) -> None:
    assert set(outcomes) == set(PYTHON)
    script = (CHECKOUT / "xdp-filter/tests/test-xdp-filter.sh").read_text()
    assert set(re.findall(r'^ALL_TESTS="(.*)"$', script, re.MULTILINE)[0].split()) == set(SHELL)


@pytest.fixture
def runner(tmp_path: Path) -> list[str | Path]:
    """The command that runs their shell tests."""
    script = CHECKOUT / "lib/testing/test_runner.sh"
    needed = re.findall(r'^NEEDED_TOOLS="(.*)"$', script.read_text(), re.MULTILINE)[0].split()
    missing = [tool for tool in needed if not shutil.which(tool)]
    if missing:
        pytest.skip(f"their tests need {', '.join(missing)}")
    # they insist on unlimited memory, which kernels since v5.11 don't ask for
    (tmp_path / "ulimit.sh").write_text("ulimit() { echo unlimited; }\n")
    return ["env", f"BASH_ENV={tmp_path / 'ulimit.sh'}", "bash", script]


@pytest.mark.parametrize("name", params(SHELL))
def test_shell_case(name: str, runner: list[str | Path], environment: dict[str, str]) -> None:
    argv = [*runner, CHECKOUT / "xdp-filter/tests/test-xdp-filter.sh", name]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert re.search(rf"\[{name}\] +PASS$", ended.stdout, re.MULTILINE)
