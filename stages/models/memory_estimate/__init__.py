"""How much device memory a step takes, by arithmetic alone; nothing here is measured."""
