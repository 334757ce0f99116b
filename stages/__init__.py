"""What each stage computes: one command, one file or folder."""
