"""Files, YAML, JSON, tables, progress and argument checks, shared by all packages."""
