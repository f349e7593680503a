"""Ways of turning examples into token ids, one file each."""
