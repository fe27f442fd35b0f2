"""The public classes of other projects: a script moves over by changing its import."""
