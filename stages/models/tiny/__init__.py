"""The tiny checkpoint of the real classes, for tests and the demo."""
