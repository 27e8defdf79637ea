"""SlimPajama as a data set of TensorFlow Datasets: `tfds build data_pipelines/slimpajama`."""
