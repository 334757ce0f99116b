"""cache-base: the frozen transformer as training needs it, computed once."""
