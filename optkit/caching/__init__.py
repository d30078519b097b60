"""The cache's parts: what decides an entry, where it is kept, and how it is shared and trimmed."""
