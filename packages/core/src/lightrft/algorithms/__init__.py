"""Pure tensor functions: advantage estimators, policy losses, KL estimators. No I/O, no collectives, no configuration."""
