"""Trains length predictors from recorded lengths: `tandem train-predictor`."""
