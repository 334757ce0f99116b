"""pair: picture folders become a table of samples; it opens pictures and no model."""
