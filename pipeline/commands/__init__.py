"""One function for each command; what several commands share is in terminal/."""
