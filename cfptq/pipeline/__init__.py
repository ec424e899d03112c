"""From a model to a result: what the public functions call."""
