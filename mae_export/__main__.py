"""`python -m mae_export` is `mae-export`."""

from mae_export.cli import main

main()
