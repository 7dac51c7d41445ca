#!/usr/bin/env -S python3 -IS
"""xdp-filter's command line, spoken to our filter: what its tests are given for xdp-filter.

$XDPLAB_XDP_FILTER is our program.  Features that it hasn't are refused.
"""

import argparse
import ipaddress
import os
import subprocess
import sys

PROGRAM = os.environ["XDPLAB_XDP_FILTER"]
SIDES = ("src", "dst")


def ours(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run our program."""
    return subprocess.run(
        [PROGRAM, *arguments], input=text, capture_output=True, text=True, check=False
    )


def done(*ended: "subprocess.CompletedProcess[str]") -> int:
    """Say what was said; gives the exit code."""
    for one in ended:
        sys.stdout.write(one.stdout)
        sys.stderr.write(one.stderr)
    return max(one.returncode for one in ended)


def load(given: argparse.Namespace) -> int:
    """Attach to an interface, and stay there."""
    if not set(given.features.split(",")) <= {"ipv4", "ipv6", "all"}:
        sys.exit("this filter knows of addresses only")
    if given.mode == "hw":
        sys.exit("this filter can't be offloaded")
    where = ("-d", given.ifname, "-m", given.mode)
    return done(ours("load", *where, "-p", given.policy, "-s"))


def unload(_: argparse.Namespace) -> int:
    """End with everything: there is one filter, on one interface."""
    return done(ours("unload"))


def ip(given: argparse.Namespace) -> int:
    """Add an address, or remove it: as often as you like, as xdp-filter does."""
    network = ipaddress.ip_network(given.address)
    there = {
        side
        for line in ours("list").stdout.splitlines()
        for side, address, *_ in [line.split()]
        if ipaddress.ip_network(address) == network
    }
    if given.remove:
        sides, command = set((given.mode or "src,dst").split(",")) & there, "remove"
    else:
        sides, command = set((given.mode or "dst").split(",")) - there, "add"
    changed = ours(command, text="".join(f"{side} {network}\n" for side in sides))
    return done(changed, *([ours("list")] if given.status else []))


def status(_: argparse.Namespace) -> int:
    """What is loaded, and the rules."""
    return done(ours("stats"), ours("list"))


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="xdp-filter")
    commands = parser.add_subparsers(required=True)
    for name, do in (("load", load), ("unload", unload), ("ip", ip), ("status", status)):
        command = commands.add_parser(name)
        command.set_defaults(do=do)
        command.add_argument("-v", "--verbose", action="count")
        if name == "load":
            command.add_argument("ifname")
            command.add_argument("-m", "--mode", default="native")
            command.add_argument("-p", "--policy", default="allow")
            command.add_argument("-f", "--features", default="all")
        elif name == "unload":
            command.add_argument("ifname", nargs="?")
            command.add_argument("-a", "--all", action="store_true")
        elif name == "ip":
            command.add_argument("address")
            command.add_argument("-r", "--remove", action="store_true")
            command.add_argument("-m", "--mode")
            command.add_argument("-s", "--status", action="store_true")
    given = parser.parse_args()
    code: int = given.do(given)
    return code


if __name__ == "__main__":
    sys.exit(main())
