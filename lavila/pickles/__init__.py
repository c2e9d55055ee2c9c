"""Readers of untrusted pickles. Nothing in such a file is imported, called or executed."""
