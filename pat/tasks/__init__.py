"""What a model is trained for: the loss, the samples and the metrics, one file for each task."""
