"""The rows of one run: their recipes and where they lie; not how they are made."""
