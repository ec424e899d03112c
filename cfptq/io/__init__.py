"""Atomic files, YAML, JSON, tables and progress, shared by all packages."""
