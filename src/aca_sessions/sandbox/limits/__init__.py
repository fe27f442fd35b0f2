"""Memory, processes and processor time of sessions: what counts and limits them, and how many sessions fit."""
