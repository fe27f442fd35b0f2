"""The command line `aca-sessions`: one module for each command or group of commands."""
