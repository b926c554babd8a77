"""The shared pruning engine: trace, gather, score, select, cut; torch, and nothing else of ours."""
