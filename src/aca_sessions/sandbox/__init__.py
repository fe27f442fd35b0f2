"""The host's half of the embedded sandbox, which runs untrusted code in isolated sessions. The untrusted half is in `guest`."""
