"""The outside of every command: options, output, errors, exit code; not what it computes."""
