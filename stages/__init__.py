"""The stages: what each computes. They meet on disk only and never import each other."""
