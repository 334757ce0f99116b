"""What a user may set, and how both files are read; nothing here does any work."""
