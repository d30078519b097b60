"""One runner per format and file; `optkit.registry` has the table."""
