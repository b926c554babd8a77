"""Fronts and pictures: takes rows and models, fetches nothing."""
