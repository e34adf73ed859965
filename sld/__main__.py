"""`python -m sld`, the same as the command `sld`."""

from sld.cli import main

if __name__ == "__main__":
    main()
