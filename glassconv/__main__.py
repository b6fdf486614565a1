"""``python -m glassconv``: the command line."""

from glassconv.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
