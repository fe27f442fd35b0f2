"""The proxy through which sessions reach the hosts of their rules. It runs on the host."""
