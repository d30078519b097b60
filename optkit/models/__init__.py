"""Models that lie somewhere: sources and files found, opened, looked at and described."""
