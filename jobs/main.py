"""The console script: ``hiera-video NAME ...`` is ``python -m jobs.NAME ...``.

``hiera-video completion`` prints what a shell (bash, or zsh with bashcompinit) needs to complete commands, recipes and
flags: ``source <(hiera-video completion)``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from jobs.core.config import recipe_names

COMMANDS = (
    "compare", "demo", "doctor", "duplicates", "evaluate", "export", "finetune", "inspect", "launch",
    "maintain", "plan", "prepare", "pretrain", "register", "search", "submit", "suggest", "sweep", "sync", "tag",
)  # fmt: skip
FLAGS = ("--help", "--print-config", "--dry-run")
COMPLETION = """_hiera_video() {
    local IFS=$'\\n'
    COMPREPLY=($(compgen -W "$(hiera-video complete "${COMP_WORDS[@]:1:COMP_CWORD-1}")" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _hiera_video hiera-video
"""
USAGE = f"""usage: hiera-video COMMAND [RECIPE] [key=value ...] [--help | --print-config | --dry-run]

commands: {", ".join(COMMANDS)}
`hiera-video COMMAND --help` lists a command's keys; `source <(hiera-video completion)` completes in bash and zsh
"""


def main() -> None:
    """Become the command; print help, a completion script or an error."""
    name, words = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if name in COMMANDS:
        os.execv(sys.executable, [sys.executable, "-m", f"jobs.{name}", *words])
    if name in ("", "-h", "--help"):
        sys.stdout.write(USAGE)
    elif name == "completion":
        sys.stdout.write(COMPLETION)
    elif name == "complete":
        sys.stdout.write("".join(f"{word}\n" for word in candidates(words)))
    else:
        sys.stderr.write(f"{name}: must be one of {', '.join(COMMANDS)}; see hiera-video --help\n")
        sys.exit(2)


def candidates(before: Sequence[str]) -> list[str]:
    """What may follow these words: a command, then its recipes and the flags."""
    if not before:
        return [*COMMANDS, "completion"]
    return [*recipe_names(before[0]), *FLAGS] if len(before) == 1 else list(FLAGS)
