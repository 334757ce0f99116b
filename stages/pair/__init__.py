"""pair: picture folders become a table of samples with geometry; what is wrong is named."""
