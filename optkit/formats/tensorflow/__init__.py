"""TensorFlow: frozen graphs, SavedModels and Keras models."""
