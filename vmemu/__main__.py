"""`python -m vmemu` is the command `vmemu`."""

from vmemu.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
