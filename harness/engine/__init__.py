"""The shared pruning engine: trace, gather, score, select, cut. It knows torch, and nothing else of ours."""
