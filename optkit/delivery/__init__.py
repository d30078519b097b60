"""What leaves a run: the delivered folder, the checks left to its target, and its proof made again."""
