"""How each format lies on disk: one file per format, shared by its runner and the passes at either end of it."""
