"""The host's side of the embedded sandbox, which runs untrusted code in isolated sessions. The untrusted side is in `guest`."""
