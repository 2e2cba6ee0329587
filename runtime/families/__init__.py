"""How each family generates: conditions, options, and one AR iteration at a time."""
