"""A kernel-tree harness for XDP: get a tree, build a C pair in it, run it, prove it."""

TUTORIAL = "xdp_ip_filter"  # the post's pair
