"""``python -m lipdub``."""

from lipdub.cli.app import main

if __name__ == "__main__":
    main()
