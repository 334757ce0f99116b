"""What a user may set: settings, datasets, and how the two files are read."""
