"""xdp-filter's cases that filter a port behind extension headers, with an address in its place."""

import importlib
import subprocess
from typing import Any

from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

theirs = importlib.import_module("tests.test_basic")  # of the checkout


class IPv6ExtensionHeader(theirs.IPv6ExtensionHeader):  # type: ignore[misc, name-defined]
    """The same extension headers."""

    def generic(self, extensions: Any) -> None:
        """Packets with these headers die while there is a rule for where they go."""
        to = self.get_contexts().get_local_main().inet6
        rule = [theirs.XDP_FILTER, "ip", to, "--mode", "dst"]
        packets = [Ether() / IPv6(dst=to) / extensions / UDP(dport=55555)] * 5
        self.arrived(packets, self.send_packets(packets))
        subprocess.run(rule, check=True)
        self.not_arrived(packets, self.send_packets(packets))
        subprocess.run([*rule, "--remove"], check=True)
        self.arrived(packets, self.send_packets(packets))
