"""The server: it answers the contract from sandboxes."""
