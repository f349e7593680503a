"""The public formats that `data.convert` reads, one module a family; each is found and imported by it."""
