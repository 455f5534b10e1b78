"""Wire messages of Apache OpenWhisk that MESP speaks (generated)."""
