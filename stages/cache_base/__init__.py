"""cache-base: the frozen transformer as training needs it; frozen_base/ knows where it lies."""
