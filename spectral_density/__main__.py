"""`python -m spectral_density`: the same as the `spectral-density` command."""

from spectral_density.command.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
