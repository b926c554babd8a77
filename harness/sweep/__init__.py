"""Studies: which settings to try next, and trials that survive anything. The only door to Optuna."""
