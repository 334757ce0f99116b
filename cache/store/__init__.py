"""Stores and sets of stores: rows found, added, moved, verified and dropped; not how they arise."""
