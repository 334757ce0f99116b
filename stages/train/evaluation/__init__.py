"""What is measured between steps and changes nothing: held-out loss and previews."""
