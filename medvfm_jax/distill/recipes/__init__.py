"""Recipes of distillation, one file each."""
