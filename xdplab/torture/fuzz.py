"""A check of `parsers` under a fuzzer that sees which branches are taken, a process of its own.

Run as `python -m xdplab.torture.fuzz CHECK [LIBFUZZER OPTIONS] CORPUS`.
"""

import sys

import atheris

with atheris.instrument_imports(include=["xdplab", "tomllib", "ipaddress"]):
    from xdplab.torture import parsers


def main() -> None:
    """Fuzz until it is told to end, or something is found."""
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], parsers.CHECKS[name].parse)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
