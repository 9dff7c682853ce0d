"""A rollout's experience as columns, micro-batches made from them, and the exchange of both between ranks; knows no model."""
