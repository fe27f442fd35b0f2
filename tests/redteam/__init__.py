"""What `make redteam` runs: public escapes, fuzzing and Python's own tests, in sessions and in other sandboxes. pytest collects none."""
