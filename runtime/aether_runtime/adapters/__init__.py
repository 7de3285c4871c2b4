"""The ports' real adapters, and those in memory that pass the same contract suite."""
