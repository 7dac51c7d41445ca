"""Runs xdp-filter's Python tests: run.py XDP_FILTER_DIRECTORY MODULES NAMES, each with commas.

To be started by root in network and mount namespaces of its own (unshare --net
--mount); $XDP_FILTER names the command to be tested.  Prints a JSON object: for each
test of the modules "passed", "not asked for", or what it said.
"""

import json
import subprocess
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path

from xdp_test_harness.xdp_case import FAR, NEAR

from xdplab import netlink


class Outcomes(unittest.TestResult):
    """What became of each test, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        """It passed."""
        self.by_name[test.id()] = "passed"

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        """It says that it can't run."""
        self.by_name[test.id()] = f"skipped: {reason}"

    def addFailure(self, test: unittest.TestCase, err: object) -> None:  # noqa: N802
        """It failed."""
        super().addFailure(test, err)  # type: ignore[arg-type]
        self.by_name[test.id()] = self.failures[-1][1]

    def addError(self, test: unittest.TestCase, err: object) -> None:  # noqa: N802
        """It broke down."""
        super().addError(test, err)  # type: ignore[arg-type]
        self.by_name[test.id()] = self.errors[-1][1]


def cases(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """The tests of a suite, and of those in it."""
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from cases(one)
        else:
            yield one


def main() -> None:
    """Lay the cable, and run what is asked for."""
    directory, modules, names = sys.argv[1], *(given.split(",") for given in sys.argv[2:])
    subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], check=True)
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")  # it would speak up
    netlink.lay_cable((NEAR, FAR))
    sys.path.insert(0, directory)
    outcomes, asked = Outcomes(), unittest.TestSuite()
    for case in cases(unittest.defaultTestLoader.loadTestsFromNames(modules)):
        if case.id() in names:
            asked.addTest(case)
        else:
            outcomes.by_name[case.id()] = "not asked for"
    asked.run(outcomes)
    print(json.dumps(outcomes.by_name))


if __name__ == "__main__":
    main()
