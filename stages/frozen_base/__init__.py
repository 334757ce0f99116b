"""The modulation table and the quantised base on disk; cache_base/ makes them."""
