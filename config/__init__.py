"""Holds what a user may set, and reads and checks both files; nothing here does any work."""
