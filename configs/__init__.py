"""Experiments of record: `base.py` lists every field, each other file starts from it (host code)."""
