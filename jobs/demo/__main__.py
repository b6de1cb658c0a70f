"""``python -m jobs.demo``."""

from jobs.demo.command import main

if __name__ == "__main__":
    main()
