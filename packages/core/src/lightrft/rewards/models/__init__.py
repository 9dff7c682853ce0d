"""Reward models: sequence classifiers that give one number for each completion."""
