"""What xdp-filter's own tests import, as far as they use it; the package of that name needs bcc."""
