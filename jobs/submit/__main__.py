"""``python -m jobs.submit``."""

from jobs.submit.command import main

if __name__ == "__main__":
    main()
