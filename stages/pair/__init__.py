"""pair: picture folders become a table of samples, each with its geometry; what is wrong is named."""
