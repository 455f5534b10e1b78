"""Wire messages of MESP, version 1 (generated)."""
