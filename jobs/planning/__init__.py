"""What a command takes, before any GPU or Ray is used: one calculator for `plan` and `--dry-run`."""
