"""What a program holds in memory, a module or samples, put at rest so that child processes can read it."""
