"""One command after the other; a file for each kind."""
