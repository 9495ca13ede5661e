"""What must not change a gradient, measured: a table of invariances with their errors, by ``python -m certificate``."""
