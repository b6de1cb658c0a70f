"""``python -m jobs.prepare``."""

from jobs.prepare.command import main

if __name__ == "__main__":
    main()
