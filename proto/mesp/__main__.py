"""`python -m mesp` is the `mesp` command."""

from mesp.cli import main

main()
