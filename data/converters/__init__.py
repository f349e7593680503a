"""The public formats that `data.convert` reads, one module per family; each is found and imported by it."""
