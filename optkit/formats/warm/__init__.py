"""What a worker imports before its first step, a module for each backend."""
