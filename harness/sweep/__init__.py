"""Studies: which settings to try next, and trials that survive. The only door to Optuna."""
