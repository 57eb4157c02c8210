"""Step grids: by name, by automatic choice, published, edited, drawn."""
