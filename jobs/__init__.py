"""The commands that people run, as `python -m jobs.NAME`: files, and folders with a `command.py`. The rest: parts."""

import logging

# DeepSpeed says at import that this machine has no GPU, to standard output; a person on a CPU knows it.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
