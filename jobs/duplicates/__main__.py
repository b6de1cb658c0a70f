"""``python -m jobs.duplicates``."""

from jobs.duplicates.command import main

if __name__ == "__main__":
    main()
