"""Ways of adapting a backbone, one file each."""
