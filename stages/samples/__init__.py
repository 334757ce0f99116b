"""The table that `pair` hands to every later stage, and the samples in it; no stores."""
