"""Other projects' spellings: a script moves over by changing its import."""
