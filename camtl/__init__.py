"""CA-MTL: what only training one conditional BERT on GLUE needs."""
