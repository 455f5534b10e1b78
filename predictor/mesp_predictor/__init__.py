"""MESP."""
