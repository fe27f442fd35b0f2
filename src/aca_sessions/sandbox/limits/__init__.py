"""Memory, processes and processor time: who counts them, and how many sessions fit."""
