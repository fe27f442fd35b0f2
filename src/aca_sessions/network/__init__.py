"""The rules of a session's network, and the secrets that they use. Clients write them, and the proxy on the host enforces them."""
