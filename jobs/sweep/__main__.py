"""``python -m jobs.sweep``."""

from jobs.sweep.command import main

if __name__ == "__main__":
    main()
