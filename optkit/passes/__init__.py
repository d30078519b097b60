"""One pass per file; `optkit.registry` has the table."""
