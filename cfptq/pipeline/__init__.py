"""Stages from a model to a result, as the public functions call them."""
