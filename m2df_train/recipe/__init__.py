"""Recipes: everything a training run depends on."""
