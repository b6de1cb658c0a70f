"""``python -m jobs.suggest``."""

from jobs.suggest.command import main

if __name__ == "__main__":
    main()
