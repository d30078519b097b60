"""How fast an artifact is beside another: run in turns, each in a process of its own, told as a ratio."""
