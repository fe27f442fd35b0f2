"""Count and limit the memory, processes and processor time of sessions, and estimate how many sessions fit on this machine."""
