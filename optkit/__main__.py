"""`python -m optkit`: the command line."""

from __future__ import annotations

from optkit.cli import main

if __name__ == "__main__":
    main()
